// Methods against an independent reference (tests/support/reference_quantizers.py). Its weights are drawn so
// that no decision stands within 1e-4 step of a tie, more than float32 can be wrong on layers this small: codes
// must be the same, every one.
#include <gtest/gtest.h>

#include <cmath>

#include "quantize/stages/bias_compensation.h"
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
      return compensate(*layer.backend, layer.weight, matrix, layer.statistics, drift, kind);
    };
    const CompensationResult channel = result(nullptr, Compensation::channel);
    expect_near(channel.channel, layer.tensors.floats(name + ".channel"), layer.in, name + ": channel");
    const double before = options.at("error_before"), after = options.at("error_after");
    EXPECT_NEAR(channel.error_before, before, 1e-4 * before) << name;
    EXPECT_NEAR(channel.error_after, after, 1e-4 * after) << name;
    expect_near(result(&reference, Compensation::channel).channel, layer.tensors.floats(name + ".drift"),
                layer.in, name + ": drift");
    const CompensationResult position = result(nullptr, Compensation::position);
    expect_near(position.channel, layer.tensors.floats(name + ".channel"), layer.in, name + ": channel");
    expect_near(position.position, layer.tensors.floats(name + ".position"), layer.in, name + ": position");
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Reference, testing::Values("narrow", "wide"),
                         [](const auto& layer) { return std::string(layer.param); });

}  // namespace
}  // namespace ballast
