// BiLLM against an independent reference (tests/support/reference_billm.py). How means and scales are settled is
// not in the paper, so codes are not compared: the salient columns are, where they depend on the weights as given
// (the first block), and the result must be as good.
#include <gtest/gtest.h>

#include "tests/quantize/golden_layer.h"

namespace ballast {
namespace {

TEST(ReferenceBillm, FindsTheSalientColumnsAndIsAsGood) {
  double objective = 0, expected = 0;
  for (const char* layer_name : {"narrow", "wide"}) {
    const GoldenLayer layer(layer_name);
    const Curvature curvature = activation_curvature(layer.statistics, false);
    for (const nlohmann::json& options : layer.facts.at("cases")) {
      if (options.at("method") != "billm") continue;
      const std::string name = layer.name + " " + options.at("name").get<std::string>();
      const QuantizedMatrix solution = layer.solve(options).matrix;
      const auto& matrix = std::get<ResidualBinaryMatrix>(solution);
      matrix.check(name);
      std::vector<int64_t> salient;
      for (int64_t i = 0; i < std::min(matrix.block_size, layer.in); ++i)
        if (matrix.salient[size_t(i)]) salient.push_back(i);
      EXPECT_EQ(salient, options.at("salient").get<std::vector<int64_t>>()) << name;
      const auto [mine, distance] = layer.errors(solution, curvature);
      EXPECT_LE(distance, 1.05 * options.at("distance").get<double>()) << name;
      objective += mine;
      expected += options.at("objective").get<double>();
    }
  }
  EXPECT_GT(expected, 0);
  EXPECT_LE(objective, expected);
}

}  // namespace
}  // namespace ballast
