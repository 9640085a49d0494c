// One pool of threads for the whole backend; the calling thread works too.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ballast {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  /// Splits [0, count) into one contiguous part per thread and calls body(state, thread, begin, end) for each
  /// non-empty part; returns when all are done, rethrowing the first exception. Not reentrant. `thread` names the
  /// part: what a worker has not begun when the caller is done with its own part, the caller does as well, so
  /// that nobody waits for a worker that the system has not let run.
  void run(int64_t count, void (*body)(void* state, int thread, int64_t begin, int64_t end), void* state);

  template <class Body>
  void parallel(int64_t count, Body&& body) {
    run(
        count,
        [](void* state, int thread, int64_t begin, int64_t end) {
          (*static_cast<std::remove_reference_t<Body>*>(state))(thread, begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  /// Calls body(thread, index) for every index of [0, count), each thread taking the next one as it gets done:
  /// for items of unequal size.
  template <class Body>
  void deal(int64_t count, Body&& body) {
    std::atomic<int64_t> next{0};
    parallel(threads(), [&](int thread, int64_t, int64_t) {
      for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;)
        body(thread, index);
    });
  }

 private:
  struct Job {
    int64_t count = 0;
    void (*body)(void*, int, int64_t, int64_t) = nullptr;
    void* state = nullptr;
  };
  void work(int index);
  void run_part(int index);
  /// True for the one thread that gets to run the part in this generation.
  bool claim(int index, uint64_t generation);

  std::vector<std::thread> workers_;
  std::vector<std::atomic<uint64_t>> claimed_;  ///< of every part, the last generation somebody took it in
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  bool stopping_ = false;
  Job job_;
  std::exception_ptr failure_;
};

}  // namespace ballast
