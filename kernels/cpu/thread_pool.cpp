#include "kernels/cpu/thread_pool.h"

#include <algorithm>

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

ThreadPool::ThreadPool(int threads) : claimed_(size_t(std::max(threads, 1))) {
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
  uint64_t generation = 0;
  {
    std::lock_guard lock(mutex_);
    job_ = {count, body, state};
    failure_ = nullptr;
    running_.store(int(workers_.size()), std::memory_order_relaxed);
    generation = generation_.fetch_add(1, std::memory_order_release) + 1;
  }
  wake_.notify_all();
  run_part(0);
  for (int index = threads() - 1; index > 0; --index) {
    if (!claim(index, generation)) continue;
    run_part(index);
    running_.fetch_sub(1, std::memory_order_relaxed);
  }
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  if (failure_) std::rethrow_exception(failure_);
}

// A part is taken at most once a generation, and run() returns only when all parts of its generation were: so
// the job is still that generation's when a worker has taken its part.
bool ThreadPool::claim(int index, uint64_t generation) {
  uint64_t last = claimed_[size_t(index)].load(std::memory_order_relaxed);
  return last < generation &&
         claimed_[size_t(index)].compare_exchange_strong(last, generation, std::memory_order_acq_rel);
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
    if (!claim(index, seen)) continue;
    run_part(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace ballast
