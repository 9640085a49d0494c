#include "engine/runtime/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "kernels/backend.h"
#include "tests/support/expect_error.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

// Probabilities 0.4, 0.3, 0.2, 0.1 for ids 2, 0, 3, 1.
const std::vector<float> kLogits = {std::log(0.3f), std::log(0.1f), std::log(0.4f), std::log(0.2f)};

SampledToken draw(const SamplingParams& params, const std::vector<float>& logits = kLogits,
                  const std::vector<int32_t>& tokens = {}, int64_t prompt = 0, int32_t banned = -1) {
  return Sampler(params).sample(logits, int64_t(logits.size()), banned, tokens, prompt);
}

std::map<int32_t, int> counts(SamplingParams params, int draws = 2000) {
  params.seed = 7;
  Sampler sampler(params);
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sampler.sample(kLogits, 4, -1, {}, 0).id];
  return counts;
}

std::set<int32_t> reachable(const SamplingParams& params) {
  std::set<int32_t> ids;
  for (const auto& [id, count] : counts(params)) ids.insert(id);
  return ids;
}

using Ids = std::set<int32_t>;

TEST(Sampler, GreedyTakesTheLikeliestAndTheSmallerIdOnATie) {
  EXPECT_EQ(draw({.temperature = 0}).id, 2);
  EXPECT_EQ(draw({.temperature = 0}, {1, 3, 3, 2}).id, 1);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const double expected[] = {0.3, 0.1, 0.4, 0.2};
  for (const auto& [id, count] : counts({}, 20000)) EXPECT_NEAR(count / 20000.0, expected[id], 0.02) << id;
}

TEST(Sampler, TemperatureSharpens) {
  // p² normalized: 0.16, 0.09, 0.04, 0.01 over 0.30.
  EXPECT_NEAR(counts({.temperature = 0.5}, 20000)[2] / 20000.0, 0.16 / 0.30, 0.02);
}

TEST(Sampler, TopKKeepsTheKLikeliest) {
  EXPECT_EQ(reachable({.top_k = 1}), (Ids{2}));
  EXPECT_EQ(reachable({.top_k = 2}), (Ids{2, 0}));
  EXPECT_EQ(reachable({.top_k = 100}), (Ids{0, 1, 2, 3}));
}

TEST(Sampler, TopPKeepsTheShortestSetThatReachesTheShare) {
  EXPECT_EQ(reachable({.top_p = 0.39}), (Ids{2}));
  EXPECT_EQ(reachable({.top_p = 0.41}), (Ids{2, 0}));
  EXPECT_EQ(reachable({.top_p = 0.69}), (Ids{2, 0}));
  EXPECT_EQ(reachable({.top_p = 0.71}), (Ids{2, 0, 3}));
}

TEST(Sampler, TopPCountsOnlyWhatTopKLeft) {
  // Of the two likeliest, 0.4/0.7 = 0.57 is the first one's share.
  EXPECT_EQ(reachable({.top_k = 2, .top_p = 0.5}), (Ids{2}));
  EXPECT_EQ(reachable({.top_k = 2, .top_p = 0.6}), (Ids{2, 0}));
}

TEST(Sampler, MinPIsRelativeToTheLikeliest) {
  EXPECT_EQ(reachable({.min_p = 0.76}), (Ids{2}));
  EXPECT_EQ(reachable({.min_p = 0.74}), (Ids{2, 0}));
  EXPECT_EQ(reachable({.min_p = 0.26}), (Ids{2, 0, 3}));
}

TEST(Sampler, OneSeedOneSequenceAnotherSeedAnother) {
  const auto sequence = [](uint64_t seed) {
    Sampler sampler({.seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 64; ++i) ids.push_back(sampler.sample(kLogits, 4, -1, {}, 0).id);
    return ids;
  };
  EXPECT_EQ(sequence(3), sequence(3));
  EXPECT_NE(sequence(3), sequence(4));
}

TEST(Sampler, RepetitionPenaltyWorksOnBothSigns) {
  const SamplingParams params{.temperature = 0, .repetition_penalty = 2};
  EXPECT_EQ(draw(params, {3.0f, 2.0f}).id, 0);
  EXPECT_EQ(draw(params, {3.0f, 2.0f}, {0}, 1).id, 1) << "3 / 2 is below 2, prompt tokens count";
  EXPECT_EQ(draw(params, {-1.0f, -1.5f}, {0}, 1).id, 1) << "-1 · 2 is below -1.5";
}

TEST(Sampler, PresenceAndFrequencyPenaltiesCountGeneratedTokensOnly) {
  const SamplingParams presence{.temperature = 0, .presence_penalty = 1};
  EXPECT_EQ(draw(presence, {1.5f, 1.0f}, {0, 0, 0}, 3).id, 0) << "the prompt is left alone";
  EXPECT_EQ(draw(presence, {1.5f, 1.0f}, {0, 0}, 1).id, 1);
  EXPECT_EQ(draw(presence, {2.5f, 1.0f}, {0, 0, 0}, 0).id, 0) << "once, however often it came";
  const SamplingParams frequency{.temperature = 0, .frequency_penalty = 1};
  EXPECT_EQ(draw(frequency, {2.5f, 1.0f}, {0}, 0).id, 0);
  EXPECT_EQ(draw(frequency, {2.5f, 1.0f}, {0, 0}, 0).id, 1);
}

TEST(Sampler, LogitBiasMovesTheChoice) {
  EXPECT_EQ(draw({.temperature = 0, .logit_bias = {{1, 50}}}).id, 1);
  EXPECT_EQ(draw({.temperature = 0, .logit_bias = {{2, -100}}}).id, 0);
  EXPECT_EQ(draw({.temperature = 0, .logit_bias = {{1000, 50}}}).id, 2) << "beyond the vocabulary: no effect";
}

TEST(Sampler, PaddingAndBannedTokensAreNeverChosen) {
  const std::vector<float> logits = {0, 5, 9, 99};
  Sampler sampler({.temperature = 1, .seed = 1});
  for (int i = 0; i < 200; ++i) EXPECT_LT(sampler.sample(logits, 3, 2, {}, 0).id, 2);
}

TEST(Sampler, LogprobsAreOfTheUnmodifiedDistribution) {
  const SampledToken token = draw({.temperature = 0, .logit_bias = {{1, 50}}, .logprobs = 2});
  EXPECT_EQ(token.id, 1);
  EXPECT_NEAR(token.logprob, std::log(0.1), 1e-6);
  ASSERT_EQ(token.top.size(), 2u);
  EXPECT_EQ(token.top[0].first, 2);
  EXPECT_NEAR(token.top[0].second, std::log(0.4), 1e-6);
  EXPECT_EQ(token.top[1].first, 0);
}

TEST(Sampler, NotANumberNeverWins) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), low = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(draw({.temperature = 0}, {nan, 1, nan}).id, 1);
  for (uint64_t seed = 0; seed < 50; ++seed)
    EXPECT_EQ(draw({.top_p = 0.9, .seed = seed}, {nan, 1, low}).id, 1);
  const int32_t any = draw({.top_p = 0.9}, {low, low}).id;
  EXPECT_TRUE(any == 0 || any == 1) << "no token is possible, yet one must come out";
}

TEST(SamplingParams, ValuesOutOfRangeAreRefusedByName) {
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               infinity = std::numeric_limits<double>::infinity();
  const auto refused = [](const char* field, const SamplingParams& params) {
    EXPECT_TRUE(throws_with(std::string(field) + " is", [&] { params.check(); })) << field;
  };
  for (const double value : {-0.1, 101.0, nan, infinity}) {
    refused("temperature", {.temperature = value});
    refused("repetition_penalty", {.repetition_penalty = value});
  }
  for (const double value : {0.0, -1.0, 1.01, nan}) refused("top_p", {.top_p = value});
  for (const double value : {-0.01, 1.01, nan}) refused("min_p", {.min_p = value});
  for (const double value : {-2.1, 2.1, nan}) {
    refused("presence_penalty", {.presence_penalty = value});
    refused("frequency_penalty", {.frequency_penalty = value});
  }
  refused("top_k", {.top_k = -1});
  refused("logprobs", {.logprobs = kMaxLogprobs + 1});
  refused("logit_bias token", {.logit_bias = {{-1, 0}}});
  refused("logit_bias", {.logit_bias = {{1, nan}}});
  EXPECT_NO_THROW(SamplingParams{}.check());
}

// What a device does with choice() is ops/choose_tokens.h; here the CPU does it.
TEST(Sampler, ChoosesTheSameTokensWithoutTheLogits) {
  const auto backend = find_backend({.device = "cpu", .threads = 1});
  constexpr int64_t kVocab = 3000, kUsable = 2900;
  const SamplingParams all[] = {{.temperature = 0},
                                {.temperature = 1},
                                {.temperature = 0.4},
                                {.temperature = 1, .top_k = 1},
                                {.temperature = 1, .top_k = 50},
                                {.temperature = 3, .top_p = 0.9},
                                {.temperature = 0.3, .top_p = 0.9},
                                {.temperature = 1, .min_p = 0.02},
                                {.temperature = 4, .top_k = 700, .top_p = 0.7, .min_p = 0.001}};
  int left = 0;
  for (SamplingParams params : all) {
    params.seed = 5;
    Sampler whole(params), parts(params);
    test::Random random(3);
    for (int draw = 0; draw < 40; ++draw) {
      const std::vector<float> logits = random.floats(kVocab, -6, 6);
      const auto banned = int32_t(random.below(kUsable));
      const SampledToken expected = whole.sample(logits, kUsable, banned, {}, 0);
      const auto choice = parts.choice(banned);
      ASSERT_TRUE(choice);
      ChosenToken chosen;
      std::vector<Candidate> candidates(ChooseTokens::kMostCandidates);
      backend->run(ChooseTokens{.logits = {logits.data(), DType::f32, {1, kVocab}},
                                .usable = kUsable,
                                .choices = {&*choice, 1},
                                .chosen = {&chosen, 1},
                                .candidates = candidates});
      auto token =
          parts.choose_among(chosen, std::span(candidates).first(size_t(choice->candidates)), kUsable);
      if (!token) {
        ++left;
        token = parts.sample(logits, kUsable, banned, {}, 0);
      }
      ASSERT_EQ(token->id, expected.id) << draw;
    }
  }
  EXPECT_EQ(left, 40) << "the flat distribution's 90 % are more tokens than a device names";
}

TEST(Sampler, AsksForTheLogitsWhereADeviceWillNotDo) {
  for (const SamplingParams& params : {SamplingParams{.repetition_penalty = 1.1},
                                       {.presence_penalty = 0.1},
                                       {.frequency_penalty = 0.1},
                                       {.logit_bias = {{1, 1.0}}},
                                       {.logprobs = 0},
                                       {.top_k = ChooseTokens::kMostCandidates + 1}})
    EXPECT_FALSE(Sampler(params).choice(-1));
}

}  // namespace
}  // namespace ballast
