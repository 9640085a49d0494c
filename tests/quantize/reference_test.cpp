// Methods against an independent reference (tests/support/reference_quantizers.py). Its weights are drawn so
// that no decision stands within 1e-4 step of a tie, more than float32 can be wrong on layers this small: codes
// must be the same, every one.
#include <gtest/gtest.h>

#include <cmath>

#include "quantize/gptaq.h"
#include "quantize/stages/bias_compensation.h"
#include "quantize/target.h"
#include "tests/quantize/golden_layer.h"

namespace ballast {
namespace {

class Reference : public testing::TestWithParam<const char*> {};

TEST_P(Reference, CodesScalesAndZeroPointsAreTheSame) {
  const GoldenLayer layer(GetParam());
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    const std::string name = options.at("name");
    if (options.at("method") != "rtn" && options.at("method") != "gptq") continue;
    expect_same(std::get<AffineMatrix>(layer.solve(options).matrix), layer.expected(name), name);
  }
}

// Compensation is a sum over columns of products with a mean; the result is stored in float32.
void expect_near(const std::vector<float>& got, const std::vector<float>& expected, int64_t columns,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  float largest = 0;
  for (const float value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], expected[i], std::sqrt(float(columns)) * 0x1p-23f * largest) << what << " " << i;
}

TEST_P(Reference, CompensationIsTheMeanError) {
  const GoldenLayer layer(GetParam());
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    if (!options.contains("error_before")) continue;
    const std::string name = options.at("name");
    const QuantizedMatrix matrix = layer.solve(options).matrix;
    Statistics reference(layer.in, 0, false);
    layer.add("x_float", reference);
    const auto result = [&](const Statistics* drift, Compensation kind) {
      return compensate(*layer.backend, {.weight = layer.weight,
                                         .target = layer.weight,
                                         .quantized = matrix,
                                         .input = layer.statistics,
                                         .reference = drift,
                                         .residual_drift = {},
                                         .kind = kind});
    };
    const auto expect_errors = [&](const CompensationResult& got, const std::string& key) {
      const double before = options.at(key + "_before"), after = options.at(key + "_after");
      EXPECT_NEAR(got.error_before, before, 1e-4 * before) << name << " " << key;
      EXPECT_NEAR(got.error_after, after, 1e-4 * after) << name << " " << key;
    };
    const CompensationResult channel = result(nullptr, Compensation::channel);
    expect_near(channel.channel, layer.tensors.floats(name + ".channel"), layer.in, name + ": channel");
    expect_errors(channel, "error");
    const CompensationResult drift = result(&reference, Compensation::channel);
    expect_near(drift.channel, layer.tensors.floats(name + ".drift"), layer.in, name + ": drift");
    expect_errors(drift, "drift_error");
    const CompensationResult position = result(nullptr, Compensation::position);
    expect_near(position.channel, layer.tensors.floats(name + ".channel"), layer.in, name + ": channel");
    expect_near(position.position, layer.tensors.floats(name + ".position"), layer.in, name + ": position");
  }
}

// Σ a bᵀ over tokens.
std::vector<float> cross_moment(const std::vector<float>& a, const std::vector<float>& b, int64_t tokens) {
  const size_t rows = a.size() / size_t(tokens), columns = b.size() / size_t(tokens);
  std::vector<double> sum(rows * columns);
  for (size_t t = 0; t < size_t(tokens); ++t)
    for (size_t i = 0; i < rows; ++i)
      for (size_t j = 0; j < columns; ++j)
        sum[i * columns + j] += double(a[t * rows + i]) * double(b[t * columns + j]);
  return {sum.begin(), sum.end()};
}

// W' − W goes through U in f32, so it is good to about epsilon times the condition of H + λI, at most
// columns / damping.
TEST_P(Reference, AsymmetricTargetIsTheSame) {
  const GoldenLayer layer(GetParam());
  InputMoments moments{.quantized = layer.statistics, .reference = Statistics(layer.in, 0, false)};
  layer.add("x_float", moments.reference);
  const std::vector<float> x = layer.tensors.floats("x"), residual = layer.tensors.floats("residual");
  std::vector<float> drift = layer.tensors.floats("x_float");
  for (size_t i = 0; i < x.size(); ++i) drift[i] -= x[i];
  moments.drift = cross_moment(drift, x, layer.tokens);
  const auto expect_target = [&](const std::string& key, bool centred) {
    LayerInput input(*layer.backend, activation_curvature(layer.statistics, centred), {}, layer.name);
    InputMoments taken = moments;
    const std::vector<float> got =
        asymmetric_target(*layer.backend, layer.weight, drift_moments(taken, centred), input.factor());
    const std::vector<float> expected = layer.tensors.floats(key);
    float largest = 0, apart = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      largest = std::max(largest, std::fabs(expected[i] - layer.weight[i]));
      apart = std::max(apart, std::fabs(expected[i] - got[i]));
    }
    EXPECT_LE(apart, float(layer.in) / 0.01f * 0x1p-23f * largest) << key;
  };
  expect_target("target", false);
  expect_target("target_centred", true);
  moments.residual = cross_moment(residual, x, layer.tokens);
  moments.residual_sum.resize(size_t(layer.out));
  for (size_t i = 0; i < residual.size(); ++i)
    moments.residual_sum[i % size_t(layer.out)] += double(residual[i]);
  expect_target("target_residual", false);
  expect_target("target_centred_residual", true);
}

TEST_P(Reference, DriftFeedbackGivesTheSameCodes) {
  const GoldenLayer layer(GetParam());
  InputMoments moments{.quantized = layer.statistics, .reference = Statistics(layer.in, 0, false)};
  layer.add("x_float", moments.reference);
  const std::vector<float> x = layer.tensors.floats("x");
  std::vector<float> drift = layer.tensors.floats("x_float");
  for (size_t i = 0; i < x.size(); ++i) drift[i] -= x[i];
  moments.drift = cross_moment(drift, x, layer.tokens);
  int cases = 0;
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    if (options.at("method") != "gptaq") continue;
    const std::string name = options.at("name");
    const bool centred = options.value("centred", false);
    const FactorOptions factoring{.damping = options.at("damping"), .act_order = options.value("act_order", false)};
    LayerInput shared(*layer.backend, activation_curvature(layer.statistics, centred), factoring, layer.name);
    InputMoments taken = moments;
    const DriftFeedback feedback(*layer.backend, drift_moments(taken, centred), shared.factor(), options.at("alpha"));
    LayerInput input(*layer.backend, feedback.factor(), factoring, layer.name);
    const std::vector<float> target = feedback.target(*layer.backend, layer.weight);
    LayerProblem problem = layer.problem(options, &input);
    problem.weight = target;
    const auto got = std::get<AffineMatrix>(method_named("gptq").solve(*layer.backend, problem).matrix);
    expect_same(got, layer.expected(name), name);
    // And not those of plain GPTQ.
    problem.weight = layer.weight;
    problem.input = &shared;
    const auto plain = std::get<AffineMatrix>(method_named("gptq").solve(*layer.backend, problem).matrix);
    EXPECT_GT(count_different(got.codes, plain.codes), layer.out * layer.in / 50) << name;
    ++cases;
  }
  EXPECT_EQ(cases, 3);
}

INSTANTIATE_TEST_SUITE_P(Layers, Reference, testing::Values("narrow", "wide"),
                         [](const auto& layer) { return std::string(layer.param); });

}  // namespace
}  // namespace ballast
