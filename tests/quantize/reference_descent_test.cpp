// Coordinate descent against an independent reference (tests/support/reference_descent.py), code by code; see
// reference_test.cpp.
#include <gtest/gtest.h>

#include "quantize/coordinate_descent.h"
#include "quantize/unbias.h"
#include "tests/quantize/golden_layer.h"

namespace ballast {
namespace {

ColumnOrder order_of(const std::string& name) {
  return name == "greedy"   ? ColumnOrder::greedy
         : name == "blocks" ? ColumnOrder::blocks
                            : ColumnOrder::natural;
}

class ReferenceDescent : public testing::TestWithParam<const char*> {};

TEST_P(ReferenceDescent, CodesAndScalesAreTheSame) {
  const GoldenLayer layer(GetParam());
  const Curvature curvature = activation_curvature(layer.statistics, false);
  int cases = 0;
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    if (options.at("method") != "descent") continue;
    const std::string name = options.at("name");
    AffineMatrix matrix = layer.expected(options.at("start"));
    coordinate_descent(*layer.backend, layer.weight, curvature, matrix,
                       {.sweeps = options.at("sweeps"),
                        .order = order_of(options.value("order", "natural")),
                        .refit_scales = options.contains("refit"),
                        .per_layer = options.value("refit", "") == "layer",
                        .move_grids = false,
                        .start_at_target = options.value("start_at_target", false),
                        .damping = options.value("damping", 0.0)});
    expect_same(matrix, layer.expected(name), name);
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

// A quotient of two sums over columns² products in f32, each good to about epsilon times their root.
TEST_P(ReferenceDescent, OutputGainsAreTheSame) {
  const GoldenLayer layer(GetParam());
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    if (!options.contains("error_before")) continue;
    const std::string name = options.at("name");
    const Curvature curvature = activation_curvature(layer.statistics, options.value("centred", false));
    const AffineMatrix matrix = layer.expected(name);
    const std::vector<float> got = output_gains(*layer.backend, layer.weight, curvature, 0,
                                                [&](int64_t row, float* q) { matrix.decode_row(row, q); });
    const std::vector<float> expected = layer.tensors.floats(name + ".gains");
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5) << name << " " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, ReferenceDescent, testing::Values("narrow", "wide"),
                         [](const auto& layer) { return std::string(layer.param); });

}  // namespace
}  // namespace ballast
