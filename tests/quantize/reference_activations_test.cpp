// Activation grids and what they are judged by, against an independent reference in float64
// (tests/support/reference_activations.py).
#include <gtest/gtest.h>

#include <cmath>

#include "quantize/activation_search.h"
#include "tests/support/backends.h"
#include "tests/support/golden_tensors.h"

namespace ballast {
namespace {

const std::filesystem::path kGolden = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/quantize";

struct Golden {
  GoldenTensors tensors{kGolden / "activations.safetensors"};
  nlohmann::json cases = nlohmann::json::parse(read_file(kGolden / "activations.json", 1 << 20));
};

ActivationGrid grid_of(const nlohmann::json& facts) {
  ActivationGrid grid{
      .kind = *activation_kind(facts.at("kind")), .bits = facts.at("bits"), .step = facts.at("step")};
  grid.zero_point = facts.value("zero_point", 0);
  grid.shift = facts.value("shift", 0);
  grid.per_octave = facts.value("per_octave", 1);
  grid.check("golden");
  return grid;
}

TEST(ReferenceActivations, RoundedValuesAreTheSame) {
  const Golden golden;
  ASSERT_GT(golden.cases.size(), 20u);
  size_t sure = 0;
  for (size_t index = 0; index < golden.cases.size(); ++index) {
    const nlohmann::json& facts = golden.cases[index];
    const ActivationGrid grid = grid_of(facts);
    const std::vector<float> x = golden.tensors.floats(facts.at("values"));
    const std::vector<float> expected = golden.tensors.floats(str(index, ".rounded"));
    const std::vector<uint8_t> decided = golden.tensors.bytes(str(index, ".sure"));
    for (size_t i = 0; i < x.size(); ++i) {
      if (!decided[i]) continue;
      ++sure;
      EXPECT_NEAR(grid.round(x[i]), expected[i], 4e-7f * std::abs(expected[i])) << facts << " at " << x[i];
    }
  }
  EXPECT_GT(sure, golden.cases.size() * 370);  // of 384 values each
}

// Sums of products in f32 of values of size 1, then weighted squares of them.
TEST(ReferenceActivations, GuidedDistancesAreTheSame) {
  const Golden golden;
  const auto backend = test::cpu_backend("auto");
  const std::vector<float> weight = golden.tensors.floats("weight"),
                           squares = golden.tensors.floats("squares");
  const int64_t in = 16, out = int64_t(weight.size()) / in;
  nn::Linear layer;
  layer.weight = Weight::dense(*backend, TensorView(weight.data(), DType::f32, {out, in}));
  const OutputErrors errors(*backend, {&layer}, {squares});
  for (size_t index = 0; index < golden.cases.size(); ++index) {
    const nlohmann::json& facts = golden.cases[index];
    const std::vector<float> x = golden.tensors.floats(facts.at("values"));
    std::vector<float> e = golden.tensors.floats(str(index, ".rounded"));
    for (size_t i = 0; i < e.size(); ++i) e[i] = x[i] - e[i];
    const double expected = facts.at("distance");
    EXPECT_NEAR(errors(TensorView(e.data(), DType::f32, {int64_t(e.size()) / in, in})), expected,
                1e-4 * expected)
        << facts;
  }
}

}  // namespace
}  // namespace ballast
