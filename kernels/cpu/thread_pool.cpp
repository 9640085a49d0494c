#include "kernels/cpu/thread_pool.h"

#include "kernels/check.h"

namespace ballast {
namespace {

// About 20 µs: long enough to bridge the gap between two ops of a decode step, short enough to leave the core
// to others when there is nothing to do.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  CHECK(threads >= 1);
  for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { work(index); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, void (*body)(void*, int, int64_t, int64_t), void* state) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    body(state, 0, 0, count);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    job_ = {count, body, state};
    failure_ = nullptr;
    running_.store(int(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  run_part(0);
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::run_part(int index) {
  const int64_t parts = threads();
  const int64_t begin = job_.count * index / parts, end = job_.count * (index + 1) / parts;
  if (begin == end) return;
  try {
    job_.body(job_.state, index, begin, end);
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void ThreadPool::work(int index) {
  uint64_t seen = 0;
  while (true) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) relax();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    run_part(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace ballast
