// Methods against an independent reference (tests/support/reference_quantizers.py). Its weights are drawn so
// that no decision stands within 1e-4 step of a tie, more than float32 can be wrong on layers this small: codes
// must be the same, every one.
#include <gtest/gtest.h>

#include <cmath>

#include "quantize/stages/bias_compensation.h"
#include "tests/quantize/golden_layer.h"

namespace ballast {
namespace {

template <class T>
int64_t different(const std::vector<T>& got, const std::vector<T>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  int64_t count = 0;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) count += got[i] != expected[i];
  return count;
}

class Reference : public testing::TestWithParam<const char*> {};

TEST_P(Reference, CodesScalesAndZeroPointsAreTheSame) {
  const GoldenLayer layer(GetParam());
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    const std::string name = options.at("name");
    const AffineMatrix matrix = std::get<AffineMatrix>(layer.solve(options).matrix);
    const std::vector<float> scales = layer.tensors.floats(name + ".scales");
    std::vector<float> got;
    for (const uint16_t scale : matrix.scales) got.push_back(f16_to_f32(scale));
    EXPECT_EQ(different(got, scales), 0) << name << ": scales";
    EXPECT_EQ(different(matrix.zero_points, layer.tensors.bytes(name + ".zeros")), 0) << name << ": zero points";
    EXPECT_EQ(different(matrix.codes, layer.tensors.bytes(name + ".codes")), 0) << name << ": codes";
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
    expect_near(result(&reference, Compensation::channel).channel, layer.tensors.floats(name + ".drift"), layer.in,
                name + ": drift");
    const CompensationResult position = result(nullptr, Compensation::position);
    expect_near(position.channel, layer.tensors.floats(name + ".channel"), layer.in, name + ": channel");
    expect_near(position.position, layer.tensors.floats(name + ".position"), layer.in, name + ": position");
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Reference, testing::Values("narrow", "wide"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace ballast
