// One pool of threads for the whole backend; the calling thread works too.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace ballast {

class ThreadPool {
 public:
  /// `pinned`: the calling thread and every worker stay on a processor of their own, in the order of the processors
  /// that the process may use. Error where there are fewer of them than threads, or the system refuses. Whoever
  /// makes the pool must destroy it, and then may run anywhere again.
  explicit ThreadPool(int threads, bool pinned = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  /// Splits [0, count) into one contiguous part per thread and calls body(state, thread, begin, end) for each
  /// non-empty part; returns when all are done, rethrowing the first exception. Not reentrant. `thread` names the
  /// part: what a worker has not begun when the caller is done with its own part, the caller does as well, so
  /// that nobody waits for a worker that the system has not let run. Takes no lock, allocates nothing, and calls the
  /// system only where a worker fell asleep.
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

  /// Calls body(thread, begin, end) for parts of [0, count): every thread walks its own contiguous share, so that
  /// reading ahead goes on from part to part, and then takes parts off the end of the fullest share: for even work on
  /// processors that others slow down, where the last of equal parts is waited for. `count` is below 2^32.
  template <class Body>
  void share(int64_t count, Body&& body) {
    if (workers_.empty()) return parallel(count, body);
    for (int index = 0; index < threads(); ++index)
      shares_[size_t(index)].range.store(packed(part_of(count, index)), std::memory_order_relaxed);
    parallel(threads(), [&](int thread, int64_t, int64_t) {
      for (Range part; part = take_front(shares_[size_t(thread)].range), part.begin < part.end;)
        body(thread, part.begin, part.end);
      for (Range part; part = take_back_of_fullest(), part.begin < part.end;)
        body(thread, part.begin, part.end);
    });
  }

 private:
  struct Job {
    int64_t count = 0;
    void (*body)(void*, int, int64_t, int64_t) = nullptr;
    void* state = nullptr;
  };
  /// Alone in a cache line: workers poll their own part's while others are taken.
  struct alignas(64) Claim {
    std::atomic<uint64_t> generation{0};  ///< the last one that somebody took the part in
  };
  struct Range {
    int64_t begin = 0, end = 0;
  };
  /// What is left of a thread's share, both ends in one word, alone in a cache line.
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0};
  };
  static uint64_t packed(const Range& range) { return uint64_t(range.end) << 32 | uint64_t(range.begin); }
  static Range unpacked(uint64_t packed) { return {int64_t(packed & 0xFFFFFFFFu), int64_t(packed >> 32)}; }
  /// The part of [0, count) that is a thread's before anything was taken.
  Range part_of(int64_t count, int index) const {
    return {count * index / threads(), count * (index + 1) / threads()};
  }
  /// A quarter of what is left, empty when nothing is.
  static Range take_front(std::atomic<uint64_t>& range);
  Range take_back_of_fullest();
  void work(int index);
  void run_part(int index);
  /// True for the one thread that gets to run the part in this generation.
  bool claim(int index, uint64_t generation);
  uint64_t start_generation();
  uint64_t wait_for_generation_after(uint64_t seen);
  void stop();

  std::vector<int> allowed_;  ///< processors, where threads are pinned
  std::vector<std::thread> workers_;
  std::vector<Claim> claims_;  ///< one a part
  std::vector<Share> shares_;  ///< one a thread
  alignas(64) std::atomic<uint64_t> generation_{0};
  /// The generation's low half, which a worker that fell asleep waits for.
  std::atomic<uint32_t> wake_{0};
  std::atomic<int> asleep_{0};
  alignas(64) std::atomic<int> running_{0};  ///< parts of workers that are not done
  std::atomic<bool> failed_{false}, stopping_{false};
  Job job_;
  std::exception_ptr failure_;  ///< of the first part to fail
};

}  // namespace ballast
