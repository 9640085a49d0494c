// Methods against an independent reference (tests/support/reference_quantizers.py). Its weights are drawn so
// that no decision stands within 1e-4 step of a tie, more than float32 can be wrong on layers this small: codes
// must be the same, every one.
#include <gtest/gtest.h>

#include <cmath>

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
    if (options.at("method") == "descent") continue;
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

// W' − W goes through U in f32, so it is good to about epsilon times the condition of H + λI, at most
// columns / damping.
TEST_P(Reference, AsymmetricTargetIsTheSame) {
  const GoldenLayer layer(GetParam());
  InputMoments moments{layer.statistics, Statistics(layer.in, 0, false),
                       std::vector<double>(size_t(layer.in * layer.in))};
  layer.add("x_float", moments.reference);
  const std::vector<float> x = layer.tensors.floats("x"), x_float = layer.tensors.floats("x_float");
  for (int64_t t = 0; t < layer.tokens; ++t)
    for (int64_t i = 0; i < layer.in; ++i)
      for (int64_t j = 0; j < layer.in; ++j)
        moments.cross[size_t(i * layer.in + j)] +=
            double(x_float[size_t(t * layer.in + i)]) * double(x[size_t(t * layer.in + j)]);
  for (const bool centred : {false, true}) {
    LayerInput input(*layer.backend, activation_curvature(layer.statistics, centred), {}, layer.name);
    const std::vector<float> got =
        asymmetric_target(*layer.backend, layer.weight, drift_moment(moments, centred), input.factor());
    const std::vector<float> expected = layer.tensors.floats(centred ? "target_centred" : "target");
    float largest = 0, apart = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      largest = std::max(largest, std::fabs(expected[i] - layer.weight[i]));
      apart = std::max(apart, std::fabs(expected[i] - got[i]));
    }
    EXPECT_LE(apart, float(layer.in) / 0.01f * 0x1p-23f * largest) << centred;
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Reference, testing::Values("narrow", "wide"),
                         [](const auto& layer) { return std::string(layer.param); });

}  // namespace
}  // namespace ballast
