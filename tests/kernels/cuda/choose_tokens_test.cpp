// Tokens chosen on the device, on the emulator: the op against the CPU backend's, and whole texts against those that the CPU
// writes.
#include "kernels/ops/choose_tokens.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "engine/runtime/engine.h"
#include "models/registry.h"
#include "tests/support/backends.h"
#include "tests/support/random.h"
#include "tests/support/simt/block_emulator.h"
#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

using test::Random;

struct Answer {
  std::vector<ChosenToken> chosen;
  std::vector<Candidate> candidates;
};
Answer answer_of(Backend& backend, const std::vector<float>& logits, int64_t vocab, int64_t usable,
                 const std::vector<TokenChoice>& choices) {
  const auto rows = int64_t(choices.size());
  Answer answer{std::vector<ChosenToken>(choices.size()),
                std::vector<Candidate>(size_t(rows * ChooseTokens::kMostCandidates))};
  backend.run(ChooseTokens{.logits = test::view_of(logits, {rows, vocab}),
                           .usable = usable,
                           .choices = choices,
                           .chosen = answer.chosen,
                           .candidates = answer.candidates});
  return answer;
}

// Sums of f64 in another order differ by some roundings each; a fraction that such a difference decides is not tried.
TEST(SimtChooseTokens, FindsWhatTheCpuFinds) {
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const auto cuda = test::emulated_backend();
  for (const auto& [vocab, usable] : {std::pair<int64_t, int64_t>{1, 1}, {7, 5}, {600, 600}, {1500, 1403}}) {
    Random random{uint64_t(vocab)};
    std::vector<TokenChoice> choices;
    for (const double temperature : {0.0, 0.3, 1.0, 50.0})
      for (const int32_t candidates : {0, 1, 40, 1024})
        choices.push_back({.temperature = temperature,
                           .fraction = double(random.uniform(0, 0.999f)),
                           .banned = int32_t(random.below(2 * usable) - usable),
                           .candidates = candidates});
    const auto rows = int64_t(choices.size());
    std::vector<float> logits = random.floats(rows * vocab, -8, 8);
    for (float& logit : logits)
      if (random.below(3) == 0) logit = std::round(logit);  // ties
    for (int64_t i = 0; i < rows * vocab; i += 13)
      logits[size_t(i)] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -INFINITY;
    for (int64_t i = 5; i < rows * vocab; i += 17) logits[size_t(i)] = i % 2 == 0 ? 0.0f : -0.0f;
    std::fill_n(logits.begin() + (rows - 1) * vocab, vocab, -INFINITY);
    const Answer expected = answer_of(*cpu, logits, vocab, usable, choices);
    const Answer actual = answer_of(*cuda, logits, vocab, usable, choices);
    for (size_t row = 0; row < choices.size(); ++row) {
      SCOPED_TRACE(str(usable, " of ", vocab, ", row ", row));
      const ChosenToken &here = expected.chosen[row], &there = actual.chosen[row];
      ASSERT_EQ(there.top, here.top);
      ASSERT_NEAR(there.total, here.total, double(usable) * 0x1p-53 * here.total);
      if (choices[row].candidates == 0) {
        ASSERT_EQ(there.token, here.token);
      }
      for (int64_t i = 0; i < std::min<int64_t>(choices[row].candidates, usable); ++i) {
        const size_t at = row * size_t(ChooseTokens::kMostCandidates) + size_t(i);
        ASSERT_EQ(actual.candidates[at].id, expected.candidates[at].id) << i;
        ASSERT_EQ(actual.candidates[at].logit, expected.candidates[at].logit) << i;
      }
    }
  }
}

TEST(SimtChooseTokens, TheEndsOfTheFractionAreTheFirstAndTheLastTokenThatCanBe) {
  const auto cuda = test::emulated_backend();
  std::vector<float> logits(1000, -INFINITY);
  logits[3] = 1, logits[700] = 1, logits[901] = 0;
  for (const auto& [fraction, token] : {std::pair(0.0, 3), {0.4, 3}, {0.5, 700}, {1 - 0x1p-53, 901}}) {
    const Answer answer = answer_of(*cuda, logits, 1000, 1000, {{.temperature = 1, .fraction = fraction}});
    EXPECT_EQ(answer.chosen[0].token, token) << fraction;
  }
}

// Texts of a tiny model, several side by side.
std::vector<std::vector<int32_t>> texts_of(Backend& backend, const std::vector<GenerationParams>& all) {
  const Checkpoint checkpoint =
      Checkpoint::open(std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/opt/plain");
  const auto model = load_model(checkpoint, backend);
  Engine engine(backend, *model, {.cache_positions = 64 * int64_t(all.size()), .usable_vocab = 95});
  std::vector<std::shared_ptr<Sequence>> sequences;
  for (const GenerationParams& params : all) {
    sequences.push_back(
        std::make_shared<Sequence>(std::vector<int32_t>{5, 17, 30 + int32_t(sequences.size())}, params,
                                   [](const Sequence&, const SampledToken&) { return true; }));
    engine.add(sequences.back());
  }
  while (engine.step()) {
  }
  std::vector<std::vector<int32_t>> texts;
  for (const auto& sequence : sequences) texts.push_back(sequence->tokens);
  return texts;
}

constexpr int64_t kTokens = 5;

std::vector<GenerationParams> with(const std::vector<SamplingParams>& all) {
  std::vector<GenerationParams> generations;
  for (const SamplingParams& sampling : all) {
    GenerationParams params{.sampling = sampling, .max_tokens = kTokens, .ignore_eos = true};
    params.sampling.seed = 11 + generations.size();
    generations.push_back(params);
  }
  return generations;
}

// The first six are chosen on the device. The model's 95 tokens are fewer than the most candidates, so a share of them is
// always reached; the last three take the host's way.
TEST(SimtChooseTokens, TextsAreThoseOfTheCpu) {
  const auto params = with({{.temperature = 0},
                            {.temperature = 1},
                            {.temperature = 0.7, .top_k = 10},
                            {.temperature = 1.5, .top_p = 0.8},
                            {.min_p = 0.05},
                            {.temperature = 2, .top_k = 20, .top_p = 0.9, .min_p = 0.01},
                            {.temperature = 1, .logprobs = 2},
                            {.temperature = 0, .repetition_penalty = 1.3},
                            {.logit_bias = {{7, 5.0}}}});
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const auto cuda = test::emulated_backend();
  EXPECT_EQ(texts_of(*cuda, params), texts_of(*cpu, params));
}

TEST(SimtChooseTokens, LogitsStayOnTheDevice) {
  const auto cuda = test::emulated_backend();
  const auto fetched = [&](const SamplingParams& sampling) {
    simt::take_counts();
    texts_of(*cuda, with({sampling}));
    return simt::take_counts().fetched_bytes;
  };
  constexpr int64_t kRowBytes = 99 * 4;  // of logits
  EXPECT_LT(fetched({.temperature = 0}), kTokens * kRowBytes / 4);
  EXPECT_LT(fetched({.temperature = 1}), kTokens * kRowBytes / 4);
  EXPECT_GE(fetched({.temperature = 1, .logprobs = 1}), kTokens * kRowBytes);
}

}  // namespace
}  // namespace ballast
