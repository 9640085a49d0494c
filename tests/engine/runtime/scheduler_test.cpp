// The scheduler alone: no model runs, tokens are made up.
#include "engine/runtime/scheduler.h"

#include "tests/support/backends.h"
#include "tests/support/expect_error.h"

namespace ballast {
namespace {

constexpr int32_t kEnd = 2;

class SchedulerTest : public testing::Test {
 protected:
  void create(int64_t cache_positions, const SchedulerLimits& limits, int64_t max_positions = 64) {
    const nn::ModelFacts facts{.hidden = 4, .layers = 1, .heads = 1};
    cache_.emplace(*backend_, facts, 1, cache_positions);
    scheduler_.emplace(*cache_, max_positions, limits);
  }

  std::shared_ptr<Sequence> add(int64_t prompt, int64_t max_tokens, Sequence::OnToken on_token = {}) {
    GenerationParams params;
    params.max_tokens = max_tokens;
    auto sequence =
        std::make_shared<Sequence>(std::vector<int32_t>(size_t(prompt), 5), params, std::move(on_token));
    scheduler_->add(sequence);
    return sequence;
  }

  // One pass; every sequence that samples gets `token`. Returns the rows of the batch.
  int64_t pass(int32_t token = 7) {
    scheduler_->next(batch_);
    const int64_t rows = batch_.tokens();
    EXPECT_EQ(batch_.logit_rows().size(), scheduler_->sampled().size());
    if (rows > 0)
      scheduler_->commit(std::vector<SampledToken>(scheduler_->sampled().size(), {.id = token}), kEnd);
    return rows;
  }

  std::unique_ptr<Backend> backend_ = test::cpu_backend("scalar");
  std::optional<KvCache> cache_;
  std::optional<Scheduler> scheduler_;
  Batch batch_;
};

TEST_F(SchedulerTest, PromptThenOneTokenAPassUntilTheLimit) {
  create(64, {});
  const auto sequence = add(10, 3);
  EXPECT_EQ(pass(), 10);
  EXPECT_EQ(pass(), 1);
  EXPECT_EQ(pass(), 1);
  EXPECT_EQ(sequence->finish, FinishReason::length);
  EXPECT_EQ(sequence->generated(), 3);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(pass(), 0);
}

TEST_F(SchedulerTest, LongPromptsAreCutIntoChunksThatSampleOnlyAtTheEnd) {
  create(64, {.max_batch_tokens = 16});
  const auto sequence = add(40, 2);
  EXPECT_EQ(pass(), 16);
  EXPECT_EQ(sequence->generated(), 0);
  EXPECT_EQ(pass(), 16);
  EXPECT_EQ(pass(), 8);
  EXPECT_EQ(sequence->generated(), 1);
}

TEST_F(SchedulerTest, DecodingGoesBeforePromptsAndSharesTheirBatch) {
  create(256, {.max_batch_tokens = 8});
  const auto first = add(4, 10);
  pass();
  const auto second = add(30, 10);
  EXPECT_EQ(pass(), 8) << "one decoded token and seven of the prompt";
  EXPECT_EQ(first->generated(), 2);
  EXPECT_EQ(second->computed, 7);
  EXPECT_EQ(batch_.rows().spans.front().past, 4);
}

TEST_F(SchedulerTest, WaitsForTheCacheInOrderOfArrival) {
  create(48, {});  // three pages
  const auto big = add(20, 12), bigger = add(30, 10), small = add(4, 4);
  pass();
  EXPECT_EQ(scheduler_->running(), 1)
      << "two pages are taken, three are needed; the small one may not overtake";
  EXPECT_EQ(scheduler_->waiting(), 2);
  for (int i = 0; i < 11; ++i) pass();
  EXPECT_EQ(big->finish, FinishReason::length);
  pass();
  EXPECT_EQ(scheduler_->running(), 1);
  EXPECT_GT(bigger->computed, 0);
  EXPECT_EQ(small->computed, 0);
  while (pass() > 0) {
  }
  EXPECT_EQ(small->finish, FinishReason::length);
  EXPECT_EQ(cache_->free_pages(), cache_->pages()) << "every page came back";
}

TEST_F(SchedulerTest, NoMoreThanMaxSequencesRun) {
  create(640, {.max_sequences = 2});
  for (int i = 0; i < 5; ++i) add(3, 3);
  pass();
  EXPECT_EQ(scheduler_->running(), 2);
  EXPECT_EQ(scheduler_->waiting(), 3);
}

TEST_F(SchedulerTest, EndTokenStopsUnlessIgnored) {
  create(64, {});
  const auto sequence = add(3, 10);
  pass(kEnd);
  EXPECT_EQ(sequence->finish, FinishReason::stop);
  const auto stubborn = add(3, 10);
  stubborn->params.ignore_eos = true;
  pass(kEnd);
  EXPECT_FALSE(stubborn->finished());
}

TEST_F(SchedulerTest, StopTokensAndTheCallbackStop) {
  create(640, {});
  const auto by_token = add(3, 10);
  by_token->params.stop_token_ids = {9};
  const auto by_callback =
      add(3, 10, [](const Sequence& sequence, const SampledToken&) { return sequence.generated() < 2; });
  pass();
  EXPECT_FALSE(by_token->finished());
  pass(9);
  EXPECT_EQ(by_token->finish, FinishReason::stop);
  EXPECT_EQ(by_callback->finish, FinishReason::stop);
  EXPECT_EQ(by_callback->generated(), 2);
}

TEST_F(SchedulerTest, CancelledSequencesLeaveWhetherRunningOrWaiting) {
  create(64, {.max_sequences = 1});
  const auto running = add(3, 30), waiting = add(3, 3), last = add(3, 1);
  pass();
  running->cancel_requested = waiting->cancel_requested = true;
  EXPECT_EQ(pass(), 3) << "the third starts at once";
  EXPECT_EQ(running->finish, FinishReason::cancelled);
  EXPECT_EQ(waiting->finish, FinishReason::cancelled);
  EXPECT_EQ(waiting->generated(), 0);
  EXPECT_EQ(last->finish, FinishReason::length);
  EXPECT_EQ(cache_->free_pages(), cache_->pages());
}

TEST_F(SchedulerTest, TokensAreClippedToTheContext) {
  create(64, {}, 12);
  const auto sequence = add(10, 100);
  while (pass() > 0) {
  }
  EXPECT_EQ(sequence->generated(), 3) << "positions 10 and 11, and one more that is never read back";
  EXPECT_EQ(sequence->computed, 12);
}

TEST_F(SchedulerTest, WhatCanNeverFitIsRefused) {
  create(32, {}, 64);
  EXPECT_TRUE(throws_with("65 tokens, the context holds 64", [&] { add(65, 1); }));
  EXPECT_TRUE(throws_with("the cache holds 32", [&] { add(30, 10); }));
  EXPECT_TRUE(throws_with("no tokens", [&] { add(0, 1); }));
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, NoTokensAskedForNoneGiven) {
  create(32, {});
  EXPECT_EQ(add(3, 0)->finish, FinishReason::length);
  EXPECT_TRUE(scheduler_->idle());
}

}  // namespace
}  // namespace ballast
