// Coordinate descent against an independent reference (tests/support/reference_descent.py), code by code; see
// reference_test.cpp.
#include <gtest/gtest.h>

#include "quantize/coordinate_descent.h"
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
                        .move_zero_points = false,
                        .start_at_target = options.value("start_at_target", false),
                        .damping = options.value("damping", 0.0)});
    expect_same(matrix, layer.expected(name), name);
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

INSTANTIATE_TEST_SUITE_P(Layers, ReferenceDescent, testing::Values("narrow", "wide"),
                         [](const auto& layer) { return std::string(layer.param); });

}  // namespace
}  // namespace ballast
