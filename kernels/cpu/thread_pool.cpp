#include "kernels/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <utility>

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

std::vector<int> allowed_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return processors;
  for (int index = 0; index < CPU_SETSIZE; ++index)
    if (CPU_ISSET(index, &set)) processors.push_back(index);
  return processors;
}

// 0 or an error number.
int keep_on(pthread_t thread, const std::vector<int>& processors) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int index : processors) CPU_SET(index, &set);
  return pthread_setaffinity_np(thread, sizeof set, &set);
}

void pin(pthread_t thread, int processor) {
  if (const int error = keep_on(thread, {processor}); error != 0)
    throw Error(str("cannot pin a thread to processor ", processor, ": ", std::strerror(error)));
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool pinned)
    : claims_(size_t(std::max(threads, 1))), shares_(size_t(std::max(threads, 1))) {
  CHECK(threads >= 1);
  if (pinned) allowed_ = allowed_processors();
  if (pinned && int(allowed_.size()) < threads)
    throw Error(str(threads, " threads cannot be pinned to ", allowed_.size(), " processors"));
  try {
    for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { work(index); });
    for (int index = 1; pinned && index < threads; ++index)
      pin(workers_[size_t(index - 1)].native_handle(), allowed_[size_t(index)]);
    if (pinned) pin(pthread_self(), allowed_[0]);
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  start_generation();
  for (std::thread& worker : workers_) worker.join();
  if (!allowed_.empty()) keep_on(pthread_self(), allowed_);
}

// Either a worker that goes to sleep has counted itself before the load of asleep_ below, and is woken, or its
// look at wake_ comes after the store, and it does not sleep: both orders are total (seq_cst).
uint64_t ThreadPool::start_generation() {
  const uint64_t generation = generation_.fetch_add(1, std::memory_order_release) + 1;
  wake_.store(uint32_t(generation), std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) wake_.notify_all();
  return generation;
}

uint64_t ThreadPool::wait_for_generation_after(uint64_t seen) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (const uint64_t now = generation_.load(std::memory_order_acquire); now != seen) return now;
    relax();
  }
  asleep_.fetch_add(1, std::memory_order_seq_cst);
  while (wake_.load(std::memory_order_seq_cst) == uint32_t(seen))
    wake_.wait(uint32_t(seen), std::memory_order_seq_cst);
  asleep_.fetch_sub(1, std::memory_order_relaxed);
  return generation_.load(std::memory_order_acquire);
}

void ThreadPool::run(int64_t count, void (*body)(void*, int, int64_t, int64_t), void* state) {
  if (count <= 0) return;
  if (workers_.empty() || count == 1) {
    body(state, 0, 0, count);
    return;
  }
  job_ = {count, body, state};
  running_.store(int(workers_.size()), std::memory_order_relaxed);
  const uint64_t generation = start_generation();
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
  if (!failed_.load(std::memory_order_relaxed)) return;
  failed_.store(false, std::memory_order_relaxed);
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

// A part is taken at most once a generation, and run() returns only when all parts of its generation were: so
// the job is still that generation's when a worker has taken its part.
bool ThreadPool::claim(int index, uint64_t generation) {
  std::atomic<uint64_t>& claimed = claims_[size_t(index)].generation;
  uint64_t last = claimed.load(std::memory_order_relaxed);
  return last < generation && claimed.compare_exchange_strong(last, generation, std::memory_order_acq_rel);
}

void ThreadPool::run_part(int index) {
  const auto [begin, end] = part_of(job_.count, index);
  if (begin == end) return;
  try {
    job_.body(job_.state, index, begin, end);
  } catch (...) {
    if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
  }
}

// A range only shrinks while its generation runs, and run() ends with it, so no old value comes back.
ThreadPool::Range ThreadPool::take_front(std::atomic<uint64_t>& range) {
  uint64_t seen = range.load(std::memory_order_relaxed);
  while (true) {
    const Range left = unpacked(seen);
    if (left.begin >= left.end) return {};
    const Range part{left.begin, left.begin + (left.end - left.begin + 3) / 4};
    if (range.compare_exchange_weak(seen, packed({part.end, left.end}), std::memory_order_relaxed))
      return part;
  }
}

ThreadPool::Range ThreadPool::take_back_of_fullest() {
  while (true) {
    Share* fullest = nullptr;
    Range most;
    for (Share& share : shares_) {
      const Range left = unpacked(share.range.load(std::memory_order_relaxed));
      if (left.end - left.begin > most.end - most.begin) most = left, fullest = &share;
    }
    if (!fullest) return {};
    const Range part{most.end - (most.end - most.begin + 3) / 4, most.end};
    uint64_t seen = packed(most);
    if (fullest->range.compare_exchange_strong(seen, packed({most.begin, part.begin}),
                                               std::memory_order_relaxed))
      return part;
  }
}

void ThreadPool::work(int index) {
  uint64_t seen = 0;
  while (true) {
    seen = wait_for_generation_after(seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!claim(index, seen)) continue;
    run_part(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace ballast
