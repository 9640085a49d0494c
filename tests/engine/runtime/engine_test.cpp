// Generation on tiny models: what else is in the batch, and how a prompt was cut, must not matter.
#include "engine/runtime/engine.h"

#include "models/registry.h"
#include "tests/support/backends.h"
#include "tests/support/expect_error.h"

namespace ballast {
namespace {

struct Request {
  std::vector<int32_t> prompt;
  GenerationParams params;
};

std::vector<Request> requests() {
  std::vector<Request> list;
  for (int i = 0; i < 6; ++i) {
    Request request;
    for (int j = 0; j < 1 + 9 * i; ++j) request.prompt.push_back(3 + (7 * i + 11 * j) % 90);
    request.params.max_tokens = 12;
    request.params.sampling.temperature = i % 2 ? 0 : 1;
    request.params.sampling.top_p = 0.9;
    request.params.sampling.seed = uint64_t(i);
    request.params.sampling.logprobs = 1;
    list.push_back(request);
  }
  return list;
}

/// Ids and the exact log-probabilities, so that one differing bit of a logit shows.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  bool operator==(const Outcome&) const = default;
};

class EngineTest : public testing::TestWithParam<const char*> {
 protected:
  std::vector<Outcome> generate(const std::vector<Request>& list, const EngineOptions& options,
                                int threads = 1, int rounds = 1) {
    const auto backend = find_backend({.device = "cpu", .threads = threads});
    const Checkpoint checkpoint =
        Checkpoint::open(BALLAST_SOURCE_DIR "/tests/golden/opt/" + std::string(GetParam()));
    const auto model = load_model(checkpoint, *backend);
    Engine engine(*backend, *model, options);
    std::vector<Outcome> outcomes;
    for (int round = 0; round < rounds; ++round) outcomes = run(engine, list);
    counters_ = engine.scheduler().counters();
    return outcomes;
  }

  std::vector<Outcome> run(Engine& engine, const std::vector<Request>& list) {
    std::vector<Outcome> outcomes(list.size());
    std::vector<std::shared_ptr<Sequence>> sequences;
    for (size_t i = 0; i < list.size(); ++i) {
      sequences.push_back(std::make_shared<Sequence>(
          list[i].prompt, list[i].params, [&outcomes, i](const Sequence&, const SampledToken& token) {
            outcomes[i].logprobs.push_back(token.logprob);
            return true;
          }));
      engine.add(sequences.back());
    }
    engine.run();
    for (size_t i = 0; i < list.size(); ++i) outcomes[i].tokens = sequences[i]->tokens;
    return outcomes;
  }

  std::vector<Outcome> alone(const std::vector<Request>& list, CacheType cache_type = CacheType::f32) {
    std::vector<Outcome> outcomes;
    for (const Request& request : list)
      outcomes.push_back(generate({request}, {.cache_type = cache_type}).front());
    return outcomes;
  }

  SchedulerCounters counters_;  ///< of the last generate()
};

TEST_P(EngineTest, ABatchGivesWhatEachSequenceGivesAlone) {
  const auto expected = alone(requests());
  EXPECT_NE(expected[0], expected[1]) << "the test would show nothing";
  EXPECT_EQ(generate(requests(), {.cache_positions = 6 * 64}), expected);
}

TEST_P(EngineTest, ChunksOfThePromptDoNotMatter) {
  const auto expected = alone(requests());
  for (const int64_t rows : {1, 5, 16, 33})
    EXPECT_EQ(generate(requests(), {.limits = {.max_batch_tokens = rows}, .cache_positions = 6 * 64}),
              expected)
        << rows;
}

TEST_P(EngineTest, NeitherThreadsNorASmallCacheMatter) {
  const auto expected = alone(requests());
  EXPECT_EQ(generate(requests(), {.cache_positions = 80}, 3), expected);
}

TEST_P(EngineTest, GivingWayDoesNotMatter) {
  auto list = requests();
  for (Request& request : list) request.params.max_tokens = 30;
  const auto expected = alone(list);
  EXPECT_EQ(generate(list, {.cache_positions = 96}), expected);
  EXPECT_GT(counters_.preemptions, 0) << "the test would show nothing";
}

TEST_P(EngineTest, PagesThatWereThereDoNotMatter) {
  const auto expected = alone(requests());
  EXPECT_EQ(generate(requests(), {.cache_positions = 12 * 64}, 1, 2), expected);
  EXPECT_GT(counters_.shared_tokens, 0) << "the test would show nothing";
}

TEST_P(EngineTest, ACacheOfCodesMakesNothingDependOnTheRest) {
  constexpr CacheType kType = CacheType::int8;
  auto list = requests();
  for (Request& request : list) request.params.max_tokens = 30;
  const auto expected = alone(list, kType);
  EXPECT_NE(expected, alone(list)) << "the cache is as it always was";
  EXPECT_EQ(
      generate(list, {.limits = {.max_batch_tokens = 5}, .cache_positions = 6 * 96, .cache_type = kType}, 3),
      expected);
  EXPECT_EQ(generate(list, {.cache_positions = 96, .cache_type = kType}), expected);
  EXPECT_GT(counters_.preemptions, 0) << "the test would show nothing";
  EXPECT_EQ(generate(list, {.cache_positions = 12 * 96, .cache_type = kType}, 1, 2), expected);
  EXPECT_GT(counters_.shared_tokens, 0) << "the test would show nothing";
}

TEST_P(EngineTest, ScoresOfAPromptAreThoseItsTokensHadWhenGenerated) {
  auto list = requests();
  for (Request& request : list) request.params.sampling.temperature = 0;
  const auto generated = alone(list);
  for (size_t i = 0; i < list.size(); ++i) {
    Request& request = list[i];
    const size_t start = request.prompt.size();
    request.prompt = generated[i].tokens;
    request.params.max_tokens = 0;
    request.params.prompt_logprobs = 0;
    for (const int64_t rows : {512, 9}) {
      const Outcome scored = generate({request}, {.limits = {.max_batch_tokens = rows}}).front();
      ASSERT_EQ(scored.logprobs.size(), request.prompt.size() - 1);
      const std::vector<float> tail(scored.logprobs.begin() + std::ptrdiff_t(start - 1),
                                    scored.logprobs.end());
      EXPECT_EQ(tail, generated[i].logprobs) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, EngineTest, testing::Values("plain", "post_norm_350m"));

class EngineLimits : public EngineTest {};

TEST_P(EngineLimits, IdsBeyondTheTokenizerAreNeverSampled) {
  auto list = requests();
  for (Request& request : list) request.params.sampling = {.temperature = 5, .seed = 9};
  for (const Outcome& outcome : generate(list, {.cache_positions = 6 * 64, .usable_vocab = 20}))
    for (size_t i = outcome.tokens.size() - outcome.logprobs.size(); i < outcome.tokens.size(); ++i)
      EXPECT_LT(outcome.tokens[i], 20);
}

TEST_P(EngineLimits, TheContextCanBeShortened) {
  Request request{.prompt = {5, 6, 7}};
  request.params.max_tokens = 100;
  request.params.ignore_eos = true;
  EXPECT_EQ(generate({request}, {.context = 10}).front().tokens.size(), 11u);
  request.prompt.assign(11, 5);
  EXPECT_TRUE(throws_with("11 tokens, the context holds 10", [&] { generate({request}, {.context = 10}); }));
}

TEST_P(EngineLimits, IdsOutsideTheVocabularyAreRefused) {
  EXPECT_TRUE(throws_with("token id 99", [&] { generate({{.prompt = {5, 99}}}, {}); }));
  EXPECT_TRUE(throws_with("token id -1", [&] { generate({{.prompt = {-1}}}, {}); }));
}

INSTANTIATE_TEST_SUITE_P(, EngineLimits, testing::Values("plain"));

}  // namespace
}  // namespace ballast
