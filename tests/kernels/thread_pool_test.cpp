#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <array>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/check.h"
#include "tests/support/backends.h"

namespace ballast {
namespace {

TEST(ThreadPool, CoversEveryIndexOnceForAnyCount) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t count = 0; count <= 40; ++count) {
      std::vector<int> visits(size_t(count), 0);
      std::vector<int> parts_of(size_t(threads), 0);
      pool.parallel(count, [&](int thread, int64_t begin, int64_t end) {
        ASSERT_LT(begin, end) << "an empty part";
        ++parts_of[size_t(thread)];
        for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
      });
      EXPECT_EQ(visits, std::vector<int>(size_t(count), 1)) << count << " on " << threads;
      for (int parts : parts_of) EXPECT_LE(parts, 1);
    }
  }
}

TEST(ThreadPool, DealsEveryIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      pool.deal(count, [&](int thread, int64_t index) {
        ASSERT_LT(thread, threads);
        ++visits[size_t(index)];
      });
      for (const std::atomic<int>& once : visits) ASSERT_EQ(once, 1) << count << " on " << threads;
    }
  }
}

TEST(ThreadPool, SharesEveryIndexOnceAndEveryThreadWalksItsOwn) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      std::vector<int64_t> walked(static_cast<size_t>(threads));
      for (int thread = 0; thread < threads; ++thread) walked[size_t(thread)] = count * thread / threads;
      pool.share(count, [&](int thread, int64_t begin, int64_t end) {
        ASSERT_LT(thread, threads);
        ASSERT_LT(begin, end);
        int64_t& own = walked[size_t(thread)];
        if (begin == own) own = end;
        const bool taken = begin < count * thread / threads || begin >= count * (thread + 1) / threads;
        EXPECT_TRUE(taken || own == end) << begin << " to " << end << " of " << count << " out of order";
        for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
      });
      for (const std::atomic<int>& once : visits) ASSERT_EQ(once, 1) << count << " on " << threads;
    }
  }
}

TEST(ThreadPool, WhatAThreadHeldUpHasNotBegunIsTakenFromIt) {
  constexpr int64_t kCount = 1000;
  ThreadPool pool(2);
  std::atomic<int64_t> left{kCount};
  std::atomic<bool> in_time{true};
  pool.share(kCount, [&](int, int64_t begin, int64_t end) {
    left -= end - begin;
    const auto start = std::chrono::steady_clock::now();
    while (begin == 0 && left > 0 && in_time)
      in_time = std::chrono::steady_clock::now() - start < std::chrono::seconds(60);
  });
  EXPECT_TRUE(in_time) << left << " of " << kCount << " still to be done";
  EXPECT_EQ(left, 0);
}

// With far more threads than processors most parts are not begun when the caller has done its own.
TEST(ThreadPool, PartsNobodyBeganAreDoneByTheCaller) {
  ThreadPool pool(32);
  for (int round = 0; round < 300; ++round) {
    std::vector<int> visits(32, 0);
    pool.parallel(32, [&](int thread, int64_t begin, int64_t end) {
      ASSERT_EQ(begin, thread);
      for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
    });
    ASSERT_EQ(visits, std::vector<int>(32, 1)) << round;
  }
}

TEST(ThreadPool, PinsEachThreadToAProcessorAndLetsGo) {
  cpu_set_t before, inside, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  {
    ThreadPool pool(1, true);
    ASSERT_EQ(sched_getaffinity(0, sizeof inside, &inside), 0);
    EXPECT_EQ(CPU_COUNT(&inside), 1);
  }
  ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "one processor";
  {
    ThreadPool pool(2, true);
    std::atomic<int> arrived{0};
    std::array<cpu_set_t, 2> sets;
    pool.parallel(2, [&](int thread, int64_t, int64_t) {
      ++arrived;
      while (arrived != 2) std::this_thread::yield();  // so that nobody does both parts
      EXPECT_EQ(sched_getaffinity(0, sizeof sets[0], &sets[size_t(thread)]), 0);
    });
    EXPECT_EQ(CPU_COUNT(&sets[0]), 1);
    EXPECT_EQ(CPU_COUNT(&sets[1]), 1);
    EXPECT_FALSE(CPU_EQUAL(&sets[0], &sets[1]));
  }
  EXPECT_THROW(ThreadPool(CPU_COUNT(&before) + 1, true), Error);
}

TEST(ThreadPool, NeedsAThread) {
  EXPECT_THROW(ThreadPool(0), ContractError);
}

// Plain, unlocked values that other threads wrote in the round before: a lost wake-up, a part run twice or a
// missing happens-before shows here or under a thread sanitizer.
TEST(ThreadPool, ManyTinyJobsSeeEachOthersResults) {
  ThreadPool pool(4);
  std::vector<int64_t> before(7, 0), after(7, 0);
  constexpr int64_t kRounds = 3000;
  for (int64_t round = 0; round < kRounds; ++round) {
    pool.parallel(7, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) after[size_t(i)] = before[size_t((i + 3) % 7)] + 1;
    });
    std::swap(before, after);
  }
  EXPECT_EQ(before, std::vector<int64_t>(7, kRounds));
}

TEST(ThreadPool, WakesAfterIdleTime) {
  ThreadPool pool(3);
  int64_t total = 0;
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // workers stop spinning and sleep
    std::atomic<int64_t> sum{0};
    pool.parallel(100, [&](int, int64_t begin, int64_t end) { sum += end - begin; });
    total += sum;
  }
  EXPECT_EQ(total, 500);
}

TEST(ThreadPool, RethrowsWhatAPartThrewAndGoesOn) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int64_t bad : {0, 5, 9}) {
      std::atomic<int64_t> done{0};
      try {
        pool.parallel(10, [&](int, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            if (i == bad) throw std::runtime_error("index " + std::to_string(i));
            ++done;
          }
        });
        ADD_FAILURE() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(error.what(), "index " + std::to_string(bad));
      }
      std::atomic<int64_t> next{0};
      pool.parallel(10, [&](int, int64_t begin, int64_t end) { next += end - begin; });
      EXPECT_EQ(next, 10) << "after a failure";
    }
  }
}

TEST(ThreadPool, SeveralFailuresGiveOne) {
  ThreadPool pool(4);
  for (int round = 0; round < 100; ++round)
    EXPECT_THROW(pool.parallel(4, [](int, int64_t, int64_t) { throw std::logic_error("all"); }),
                 std::logic_error);
}

TEST(ThreadPool, ComesAndGoesQuickly) {
  for (int round = 0; round < 200; ++round) ThreadPool pool(4);
  for (int round = 0; round < 50; ++round) {
    ThreadPool pool(4);
    pool.parallel(4, [](int, int64_t, int64_t) {});
  }
}

TEST(ThreadPool, BackendOffersItToCallers) {
  const auto backend = test::cpu_backend("scalar", 3);
  std::vector<int> visits(100, 0);
  backend->parallel_for(100, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
  });
  EXPECT_EQ(visits, std::vector<int>(100, 1));
}

}  // namespace
}  // namespace ballast
