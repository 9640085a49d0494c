#include "engine/evaluation/perplexity.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/evaluation/text_data.h"
#include "engine/evaluation/token_scores.h"
#include "engine/io/json.h"
#include "engine/io/tokenizer.h"
#include "engine/runtime/runner.h"
#include "models/registry.h"
#include "tests/support/expect_error.h"

namespace ballast {
namespace {

constexpr const char* kGolden = BALLAST_SOURCE_DIR "/tests/golden/opt/";

using Windows = std::vector<Window>;

Windows plan(int64_t tokens, PerplexityOptions options, int64_t max_positions = 64) {
  return plan_windows(tokens, max_positions, options);
}

TEST(PlanWindows, GptqLaysThemEndToEndAndDropsTheTail) {
  EXPECT_EQ(plan(35, {.context = 10}), (Windows{{0, 1}, {10, 1}, {20, 1}}));
  EXPECT_EQ(plan(30, {.context = 10}), (Windows{{0, 1}, {10, 1}, {20, 1}}));
  EXPECT_EQ(plan(29, {.context = 10}), (Windows{{0, 1}, {10, 1}}));
}

TEST(PlanWindows, AStrideScoresEveryTargetOnce) {
  EXPECT_EQ(plan(20, {.context = 10, .stride = 4}), (Windows{{0, 1}, {4, 6}, {8, 6}}));
  // Targets 1 … 9, 10 … 13, 14 … 17.
}

TEST(PlanWindows, LlamacppScoresTheSecondHalf) {
  EXPECT_EQ(plan(20, {.protocol = Protocol::llamacpp, .context = 8, .bos_id = 2}), (Windows{{0, 5}, {8, 5}}));
}

TEST(PlanWindows, DefaultContexts) {
  const auto context = [](Protocol protocol, int64_t positions) {
    PerplexityOptions options{.protocol = protocol, .bos_id = 2};
    plan_windows(5000, positions, options);
    return options.context;
  };
  EXPECT_EQ(context(Protocol::gptq, 4096), 2048);
  EXPECT_EQ(context(Protocol::gptq, 300), 300);
  EXPECT_EQ(context(Protocol::llamacpp, 4096), 512);
  EXPECT_EQ(context(Protocol::llamacpp, 300), 300);
}

TEST(PlanWindows, APartCanBeTaken) {
  EXPECT_EQ(plan(100, {.context = 10, .first_window = 3, .windows = 2}), (Windows{{30, 1}, {40, 1}}));
  EXPECT_EQ(plan(100, {.context = 10, .first_window = 8, .windows = 9}), (Windows{{80, 1}, {90, 1}}));
}

TEST(PlanWindows, WhatCannotBeMeasuredIsRefused) {
  EXPECT_TRUE(throws_with("9 tokens, expected at least one window of 10", [] { plan(9, {.context = 10}); }));
  EXPECT_TRUE(throws_with("--ctx is 65, expected 2 to 64", [] { plan(100, {.context = 65}); }));
  EXPECT_TRUE(throws_with("--ctx is 1,", [] { plan(100, {.context = 1}); }));
  EXPECT_TRUE(throws_with("--stride is 11", [] { plan(100, {.context = 10, .stride = 11}); }));
  EXPECT_TRUE(throws_with("--from-chunk is 10, expected 0 to 9",
                          [] { plan(100, {.context = 10, .first_window = 10}); }));
  EXPECT_TRUE(throws_with("--stride goes with", [] {
    plan(100, {.protocol = Protocol::llamacpp, .context = 10, .stride = 5, .bos_id = 2});
  }));
  EXPECT_TRUE(
      throws_with("beginning-of-text", [] { plan(100, {.protocol = Protocol::llamacpp, .context = 10}); }));
}

TEST(Protocol, NamesGoBothWays) {
  for (const Protocol protocol : {Protocol::gptq, Protocol::llamacpp})
    EXPECT_EQ(protocol_from(name_of(protocol)), protocol);
  EXPECT_TRUE(throws_with("\"hf\", expected gptq or llamacpp", [] { protocol_from("hf"); }));
}

struct TinyModel {
  explicit TinyModel(const std::string& name)
      : checkpoint(Checkpoint::open(kGolden + name)), backend(find_backend({.device = "cpu", .threads = 2})) {
    model = load_model(checkpoint, *backend);
  }

  // Logits of every token of one sequence, the slow and obvious way: one token a pass.
  std::vector<std::vector<float>> logits(const std::vector<int32_t>& ids) {
    KvCache cache(*backend, model->facts(), model->facts().layers, int64_t(ids.size()));
    Runner runner(*backend, *model, cache);
    PageTable pages;
    cache.reserve(pages, int64_t(ids.size()));
    std::vector<std::vector<float>> rows;
    for (size_t i = 0; i < ids.size(); ++i) {
      Batch batch;
      batch.add({&ids[i], 1}, int64_t(i), pages);
      batch.want_logits();
      const TensorView row = runner.run(batch);
      rows.emplace_back(row.as<float>(), row.as<float>() + row.shape[1]);
    }
    return rows;
  }

  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<nn::Model> model;
};

std::vector<int32_t> some_ids(int count) {
  std::vector<int32_t> ids = {2};
  for (int i = 1; i < count; ++i) ids.push_back(3 + (i * i + 5 * i) % 90);
  return ids;
}

double naive_nll(TinyModel& tiny, const std::vector<int32_t>& window, size_t first_target,
                 std::vector<double>& all) {
  const auto rows = tiny.logits(window);
  double sum = 0;
  for (size_t i = first_target; i < window.size(); ++i) {
    double total = 0;
    for (const float logit : rows[i - 1]) total += std::exp(double(logit));
    all.push_back(std::log(total) - rows[i - 1][size_t(window[i])]);
    sum += all.back();
  }
  return sum / double(window.size() - first_target);
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / double(values.size());
}

TEST(Perplexity, GptqAgreesWithOneTokenAtATime) {
  TinyModel tiny("plain");
  const auto ids = some_ids(70);
  std::vector<double> targets, windows;
  for (int w = 0; w < 4; ++w)
    windows.push_back(naive_nll(tiny, {ids.begin() + 16 * w, ids.begin() + 16 * (w + 1)}, 1, targets));
  // Passes of one window, of three and of all.
  for (const int64_t pass : {1, 50, 2048}) {
    const auto result =
        measure_perplexity(*tiny.backend, *tiny.model, nullptr, ids, {.context = 16, .pass_tokens = pass});
    EXPECT_EQ(result.tokens, 4 * 15);
    EXPECT_EQ(result.text_tokens, 70);
    EXPECT_EQ(result.windows, 4);
    EXPECT_NEAR(result.nll, mean(targets), 1e-9);
    EXPECT_NEAR(result.perplexity, std::exp(mean(targets)), 1e-7);
    ASSERT_EQ(result.window_nll.size(), 4u);
    for (size_t w = 0; w < 4; ++w) EXPECT_NEAR(result.window_nll[w], windows[w], 1e-9);
    double squares = 0;
    for (const double nll : targets) squares += (nll - mean(targets)) * (nll - mean(targets));
    EXPECT_NEAR(result.nll_standard_error, std::sqrt(squares / 59 / 60), 1e-9);
    EXPECT_NEAR(result.standard_error, result.perplexity * result.nll_standard_error, 1e-9);
    EXPECT_FALSE(result.reference);
  }
}

TEST(Perplexity, LlamacppStartsEachWindowWithTheBeginningToken) {
  TinyModel tiny("plain");
  const auto ids = some_ids(40);
  std::vector<double> targets;
  for (int w = 0; w < 2; ++w) {
    std::vector<int32_t> window(ids.begin() + 16 * w, ids.begin() + 16 * (w + 1));
    window.front() = 44;
    naive_nll(tiny, window, 9, targets);
  }
  const auto result = measure_perplexity(*tiny.backend, *tiny.model, nullptr, ids,
                                         {.protocol = Protocol::llamacpp, .context = 16, .bos_id = 44});
  EXPECT_EQ(result.tokens, 2 * 7);
  EXPECT_NEAR(result.nll, mean(targets), 1e-9);
}

TEST(Perplexity, StrideScoresWithMoreContext) {
  TinyModel tiny("plain");
  const auto ids = some_ids(24);
  std::vector<double> targets;
  naive_nll(tiny, {ids.begin(), ids.begin() + 16}, 1, targets);
  naive_nll(tiny, {ids.begin() + 4, ids.begin() + 20}, 12, targets);
  naive_nll(tiny, {ids.begin() + 8, ids.begin() + 24}, 12, targets);
  const auto result =
      measure_perplexity(*tiny.backend, *tiny.model, nullptr, ids, {.context = 16, .stride = 4});
  EXPECT_EQ(result.tokens, 23);
  EXPECT_NEAR(result.nll, mean(targets), 1e-9);
}

TEST(Perplexity, ComparesWithAReferenceInTheSamePass) {
  TinyModel tiny("plain"), other("gelu");
  const auto ids = some_ids(32);
  std::vector<double> kls;
  double same = 0, moved = 0;
  for (int w = 0; w < 2; ++w) {
    const std::vector<int32_t> window(ids.begin() + 16 * w, ids.begin() + 16 * (w + 1));
    const auto q = tiny.logits(window), p = other.logits(window);
    for (size_t i = 1; i < 16; ++i) {
      const ComparedScore score = compare_token(q[i - 1], p[i - 1], window[i]);
      kls.push_back(score.kl);
      same += score.model.likeliest == score.reference.likeliest;
      moved += std::pow(std::exp(-score.model.nll) - std::exp(-score.reference.nll), 2);
    }
  }
  const auto result = measure_perplexity(*tiny.backend, *tiny.model, other.model.get(), ids, {.context = 16});
  const auto alone = measure_perplexity(*other.backend, *other.model, nullptr, ids, {.context = 16});
  ASSERT_TRUE(result.reference);
  EXPECT_NEAR(result.reference->kl_mean, mean(kls), 1e-9);
  EXPECT_GT(result.reference->kl_mean, 0.01) << "the models are too alike for the test to show anything";
  std::sort(kls.begin(), kls.end());
  EXPECT_NEAR(result.reference->kl_max, kls.back(), 1e-6);
  EXPECT_NEAR(result.reference->kl_median, kls[15], 1e-6);
  EXPECT_NEAR(result.reference->kl_p90, kls[26], 1e-6);
  EXPECT_NEAR(result.reference->top1_agreement, same / 30, 1e-12);
  EXPECT_NEAR(result.reference->rms_delta_p, std::sqrt(moved / 30), 1e-12);
  EXPECT_NEAR(result.reference->perplexity, alone.perplexity, 1e-9);
  EXPECT_NEAR(result.reference->ln_perplexity_ratio, result.nll - alone.nll, 1e-12);
}

TEST(Perplexity, AModelAgreesWithItself) {
  TinyModel tiny("plain");
  const auto result =
      measure_perplexity(*tiny.backend, *tiny.model, tiny.model.get(), some_ids(40), {.context = 20});
  EXPECT_EQ(result.reference->kl_max, 0);
  EXPECT_EQ(result.reference->top1_agreement, 1);
  EXPECT_EQ(result.reference->rms_delta_p, 0);
}

TEST(Perplexity, ReportsProgressAndStopsWhenTold) {
  TinyModel tiny("plain");
  std::vector<int64_t> seen;
  const auto watch = [&](const PerplexityProgress& now) {
    seen.push_back(now.windows_done);
    EXPECT_EQ(now.windows_total, 5);
    EXPECT_GT(now.perplexity, 1);
    if (now.windows_done == 4) throw std::runtime_error("enough");
  };
  EXPECT_THROW(measure_perplexity(*tiny.backend, *tiny.model, nullptr, some_ids(50),
                                  {.context = 10, .pass_tokens = 20}, watch),
               std::runtime_error);
  EXPECT_EQ(seen, (std::vector<int64_t>{2, 4}));
}

TEST(Perplexity, MisfitsAreRefused) {
  TinyModel tiny("plain");
  auto ids = some_ids(40);
  ids[3] = 99;
  EXPECT_TRUE(throws_with("token id 99, outside the model's vocabulary of 99", [&] {
    measure_perplexity(*tiny.backend, *tiny.model, nullptr, ids, {.context = 10});
  }));
}

// The bundled model on WikiText-2, against a figure measured by other software.
class DemoPerplexity : public testing::Test {
 protected:
  void SetUp() override {
    const std::string path = BALLAST_SOURCE_DIR "/../shared/data/wikitext-2-raw/wiki.test.raw";
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
    const auto tokenizer = Tokenizer::open(kDemo);
    ids_ = tokenizer->encode(join_rows(read_file(path, 1 << 24), Dataset::wikitext2));
    reference_ = parse_json(read_file(std::string(kDemo) + "/reference.json", 1 << 20), "reference.json");
    ASSERT_EQ(int64_t(ids_.size()), reference_["wikitext2_test_tokens"]);
  }
  PerplexityResult measure(int64_t windows) {
    const Checkpoint checkpoint = Checkpoint::open(kDemo);
    const auto backend = find_backend({.device = "cpu"});
    const auto model = load_model(checkpoint, *backend);
    return measure_perplexity(*backend, *model, nullptr, ids_, {.windows = windows});
  }

  static constexpr const char* kDemo = BALLAST_SOURCE_DIR "/models/demo";
  std::vector<int32_t> ids_;
  nlohmann::json reference_;
};

TEST_F(DemoPerplexity, FirstWindows) {
  const double expected = reference_["wikitext2_test_first_16_windows_perplexity"];
  EXPECT_NEAR(measure(16).perplexity, expected, 1e-3 * expected);
}

TEST_F(DemoPerplexity, WholeTestSetSlow) {
  const PerplexityResult result = measure(0);
  const double expected = reference_["wikitext2_test_perplexity"];
  EXPECT_EQ(result.windows, reference_["wikitext2_test_windows"]);
  EXPECT_NEAR(result.perplexity, expected, 1e-3 * expected);
}

}  // namespace
}  // namespace ballast
