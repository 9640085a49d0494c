// The scheduler alone: no model runs, tokens are made up.
#include "engine/runtime/scheduler.h"

#include <numeric>

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
    return add(std::vector<int32_t>(size_t(prompt), next_token_++), params, std::move(on_token));
  }
  std::shared_ptr<Sequence> add(std::vector<int32_t> prompt, const GenerationParams& params,
                                Sequence::OnToken on_token = {}) {
    auto sequence = std::make_shared<Sequence>(std::move(prompt), params, std::move(on_token));
    scheduler_->add(sequence);
    return sequence;
  }

  // One pass; every sequence that samples gets `token`. Returns the rows of the batch.
  int64_t pass(int32_t token = 7) {
    scheduler_->next(batch_);
    const int64_t rows = batch_.tokens();
    EXPECT_EQ(batch_.logit_rows().size(), scheduler_->wanted().size());
    if (rows > 0)
      scheduler_->commit(std::vector<SampledToken>(scheduler_->wanted().size(), {.id = token}), kEnd);
    return rows;
  }

  std::unique_ptr<Backend> backend_ = test::cpu_backend("scalar");
  std::optional<KvCache> cache_;
  std::optional<Scheduler> scheduler_;
  Batch batch_;
  int32_t next_token_ = 10;  ///< prompts differ, unless a test says otherwise
};

std::vector<int32_t> counting(int64_t count, int32_t first = 100) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

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

TEST_F(SchedulerTest, WhenTheCacheRunsOutTheLastToStartGivesWay) {
  create(64, {});  // four pages
  const auto first = add(16, 40), second = add(16, 40);
  pass();
  EXPECT_EQ(scheduler_->running(), 2) << "two pages each";
  int64_t passes = 1;
  for (; scheduler_->running() == 2; ++passes) pass();
  EXPECT_EQ(scheduler_->counters().preemptions, 1);
  EXPECT_EQ(second->computed, 0);
  EXPECT_EQ(second->generated(), first->generated() - 1) << "it keeps what it has generated";
  while (pass() > 0) {
  }
  EXPECT_EQ(first->generated(), 40);
  EXPECT_EQ(second->generated(), 40);
  EXPECT_EQ(cache_->free_pages(), cache_->pages());
}

TEST_F(SchedulerTest, PagesOfAnEarlierPromptAreSharedUpToTheLastToken) {
  create(640, {});
  GenerationParams params;
  params.max_tokens = 1;
  add(counting(40), params);
  EXPECT_EQ(pass(), 40);
  add(counting(40), params);
  EXPECT_EQ(pass(), 8) << "two full pages are there";
  add(counting(32), params);
  EXPECT_EQ(pass(), 16) << "the last token's logits are wanted, so its page is computed";
  EXPECT_EQ(scheduler_->counters().shared_tokens, 48);
  EXPECT_EQ(cache_->free_pages(), cache_->pages());
}

TEST_F(SchedulerTest, SharingNeedsEqualSaltAndPermissionAndNoScores) {
  create(640, {});
  GenerationParams params;
  params.max_tokens = 1;
  add(counting(40), params);
  pass();
  for (const int what : {0, 1, 2}) {
    GenerationParams other = params;
    if (what == 0) other.prefix_salt = 1;
    if (what == 1) other.share_prefix = false;
    if (what == 2) other.prompt_logprobs = 0;
    add(counting(40), other);
    EXPECT_EQ(pass(), 40) << what;
  }
}

TEST_F(SchedulerTest, SharedPagesAreGivenUpWhenRoomIsNeededLastPageFirst) {
  create(64, {});  // four pages
  GenerationParams params;
  params.max_tokens = 1;
  add(counting(48), params);
  pass();  // leaves three findable pages
  add(counting(20, 500), params);
  pass();  // takes the free one and the last of the three
  add(counting(48), params);
  EXPECT_EQ(pass(), 16) << "two were kept, one is computed anew";
}

TEST_F(SchedulerTest, FollowersWaitUntilTheirLeaderHasComputedThePrompt) {
  create(640, {.max_batch_tokens = 32}, 128);
  GenerationParams params;
  params.max_tokens = 4;
  const auto leader = add(counting(70), params);
  const auto follower = std::make_shared<Sequence>(counting(70), params, Sequence::OnToken{});
  follower->leader = leader;
  scheduler_->add(follower);
  EXPECT_EQ(pass(), 32);
  EXPECT_EQ(pass(), 32);
  EXPECT_EQ(scheduler_->running(), 1);
  EXPECT_EQ(pass(), 12) << "four pages of 16 are there: each has six tokens left";
  EXPECT_EQ(follower->shared, 64);
}

TEST_F(SchedulerTest, OwnersTakeTurns) {
  create(1280, {.max_sequences = 2});
  const auto sequence = [&](uint64_t owner) {
    const auto made = add(3, 30);
    made->owner = owner;
    return made;
  };
  const auto greedy = sequence(1), greedy_too = sequence(1), modest = sequence(2);
  pass();
  EXPECT_GT(greedy->computed, 0);
  EXPECT_EQ(greedy_too->computed, 0);
  EXPECT_GT(modest->computed, 0);
}

TEST_F(SchedulerTest, PromptsShareTheBatchEvenlyAndGetLessWhileOthersDecode) {
  create(1280, {.max_batch_tokens = 30});
  const auto small = add(5, 9), big = add(50, 9), bigger = add(60, 9);
  pass();
  EXPECT_EQ(small->computed, 5);
  EXPECT_EQ(big->computed, 13);
  EXPECT_EQ(bigger->computed, 12);
  scheduler_->next(batch_, 10);
  EXPECT_EQ(batch_.tokens(), 11);
  scheduler_->fail();
  EXPECT_EQ(big->finish, FinishReason::failed);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(cache_->free_pages(), cache_->pages());
}

TEST_F(SchedulerTest, ScoresEveryPromptTokenButTheFirstOnce) {
  create(640, {.max_batch_tokens = 7});
  GenerationParams params;
  params.max_tokens = 2;
  params.prompt_logprobs = 0;
  int64_t calls = 0;
  const auto sequence =
      add(counting(20), params, [&](const Sequence&, const SampledToken&) { return ++calls, true; });
  std::vector<size_t> rows;
  while (pass() > 0) rows.push_back(batch_.logit_rows().size());
  EXPECT_EQ(rows, (std::vector<size_t>{7, 7, 6, 1})) << "the last row of the prompt samples";
  EXPECT_EQ(calls, 19 + 2);
  EXPECT_EQ(sequence->generated(), 2);
}

TEST_F(SchedulerTest, WithoutTokensToGenerateThePromptIsScoredAndDone) {
  create(64, {});
  GenerationParams params;
  params.max_tokens = 0;
  params.prompt_logprobs = 0;
  const auto sequence = add(counting(64), params);
  EXPECT_EQ(pass(), 63) << "nothing follows the last token";
  EXPECT_EQ(sequence->finish, FinishReason::length);
  EXPECT_EQ(sequence->scored, 64);
  EXPECT_EQ(add(counting(1), params)->finish, FinishReason::length);
  EXPECT_TRUE(scheduler_->idle());
}

}  // namespace
}  // namespace ballast
