// SpQR against an independent reference (tests/support/reference_spqr.py): every stored number but the codes
// under outliers, which stand for nothing. See reference_test.cpp.
#include <gtest/gtest.h>

#include "tests/quantize/golden_layer.h"

namespace ballast {
namespace {

class ReferenceSpqr : public testing::TestWithParam<const char*> {};

TEST_P(ReferenceSpqr, EveryStoredNumberIsTheSame) {
  const GoldenLayer layer(GetParam());
  int cases = 0;
  for (const nlohmann::json& options : layer.facts.at("cases")) {
    if (options.at("method") != "spqr") continue;
    ++cases;
    const std::string name = options.at("name");
    const auto matrix = std::get<SparseOutlierMatrix>(layer.solve(options).matrix);
    matrix.check(name);
    std::vector<uint8_t> outlier(size_t(layer.out * layer.in));
    for (int64_t row = 0; row < layer.out; ++row)
      for (uint32_t i = matrix.outlier_rows[size_t(row)]; i < matrix.outlier_rows[size_t(row + 1)]; ++i)
        outlier[size_t(row * layer.in) + matrix.outlier_columns[i]] = 1;
    EXPECT_EQ(count_different(outlier, layer.tensors.bytes(name + ".outlier")), 0) << name << ": outliers";
    EXPECT_EQ(count_different(as_floats(matrix.outlier_values), layer.tensors.floats(name + ".values")), 0)
        << name << ": values";
    EXPECT_EQ(count_different(as_floats(matrix.stats), layer.tensors.floats(name + ".stats")), 0)
        << name << ": statistics";
    EXPECT_EQ(count_different(matrix.scale_codes, layer.tensors.bytes(name + ".scale_codes")), 0)
        << name << ": scale codes";
    EXPECT_EQ(count_different(matrix.zero_codes, layer.tensors.bytes(name + ".zero_codes")), 0)
        << name << ": zero codes";
    std::vector<uint8_t> codes = matrix.codes, expected = layer.tensors.bytes(name + ".codes");
    for (size_t i = 0; i < outlier.size(); ++i)
      if (outlier[i]) codes[i] = expected[i] = 0;
    EXPECT_EQ(count_different(codes, expected), 0) << name << ": codes";
  }
  EXPECT_GT(cases, 0);
}

INSTANTIATE_TEST_SUITE_P(Layers, ReferenceSpqr, testing::Values("narrow", "wide"),
                         [](const auto& layer) { return std::string(layer.param); });

}  // namespace
}  // namespace ballast
