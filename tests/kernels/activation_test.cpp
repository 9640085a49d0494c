// Grids of activations: single values by their definition, rows on every instruction set.
#include "kernels/encodings/activation.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tests/support/backends.h"
#include "tests/support/expect_error.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

using Kind = ActivationGrid::Kind;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<ActivationGrid> all_grids() {
  std::vector<ActivationGrid> grids;
  for (const int bits : {2, 4, 6, 8}) {
    const int last = (1 << bits) - 1;
    for (const int zero : {0, 1, last / 2, last})
      grids.push_back({.bits = bits, .step = 0.037f, .zero_point = zero});
    for (const int shift : {0, 3, 9}) {
      grids.push_back({.kind = Kind::twin_sign, .bits = bits, .step = 0.0041f, .shift = shift});
      grids.push_back({.kind = Kind::twin_size, .bits = bits, .step = 0.0041f, .shift = shift});
    }
    for (const int n : {1, 2})
      grids.push_back({.kind = Kind::logarithm, .bits = bits, .step = 0.83f, .per_octave = n});
  }
  return grids;
}

std::vector<float> values() {
  test::Random random(3);
  std::vector<float> x = random.floats(301);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= std::exp2(float(i % 20) - 14);
  for (const float extreme :
       {0.0f, -0.0f, 1.0f, 1e30f, -1e30f, kInfinity, -kInfinity, kNaN, 0x1p-149f, 0.0185f, 0.0555f})
    x.push_back(extreme);
  return x;
}

TEST(ActivationGrid, AffineByHand) {
  const ActivationGrid grid{.bits = 4, .step = 0.5f, .zero_point = 3};
  for (const auto& [x, expected] : {std::pair{0.0f, 0.0f},
                                    {0.26f, 0.5f},
                                    {0.25f, 0.0f},
                                    {0.75f, 1.0f},
                                    {-1.4f, -1.5f},
                                    {-9.0f, -1.5f},
                                    {5.9f, 6.0f},
                                    {7.0f, 6.0f},
                                    {kInfinity, 6.0f},
                                    {-kInfinity, -1.5f}})
    EXPECT_EQ(grid.round(x), expected) << x;
  EXPECT_TRUE(std::isnan(grid.round(kNaN)));
}

TEST(ActivationGrid, TwinsByHand) {
  // Behind GELU: steps of 1/64 below 0, of 1/4 above.
  const ActivationGrid sign{.kind = Kind::twin_sign, .bits = 4, .step = 1.0f / 64, .shift = 4};
  for (const auto& [x, expected] :
       {std::pair{-0.03f, -2.0f / 64}, {-1.0f, -8.0f / 64}, {0.03f, 0.0f}, {0.2f, 0.25f}, {9.0f, 1.75f}})
    EXPECT_EQ(sign.round(x), expected) << x;
  // Behind softmax: 0 … 7/64, then 0 … 7/8 in eighths.
  const ActivationGrid size{.kind = Kind::twin_size, .bits = 4, .step = 1.0f / 64, .shift = 3};
  for (const auto& [x, expected] : {std::pair{0.0f, 0.0f},
                                    {0.02f, 1.0f / 64},
                                    {0.11f, 7.0f / 64},
                                    {0.13f, 0.125f},
                                    {0.3f, 0.25f},
                                    {1.0f, 0.875f},
                                    {-1.0f, 0.0f}})
    EXPECT_EQ(size.round(x), expected) << x;
}

// The middle between two levels is that of their logarithms.
TEST(ActivationGrid, LogarithmsByHand) {
  const ActivationGrid one{.kind = Kind::logarithm, .bits = 2, .step = 1};
  for (const auto& [x, expected] : {std::pair{1.0f, 1.0f},
                                    {3.0f, 1.0f},
                                    {0.71f, 1.0f},
                                    {0.70f, 0.5f},
                                    {0.36f, 0.5f},
                                    {0.35f, 0.25f},
                                    {0.17f, 0.0f},
                                    {0.0f, 0.0f},
                                    {-1.0f, 0.0f}})
    EXPECT_EQ(one.round(x), expected) << x;
  const ActivationGrid two{.kind = Kind::logarithm, .bits = 4, .step = 1, .per_octave = 2};
  EXPECT_EQ(two.round(0.7f), 0.5f * 1.41421356f);
  EXPECT_EQ(two.round(0.6f), 0.5f * 1.41421356f);
  EXPECT_EQ(two.round(0.59f), 0.5f);
  EXPECT_EQ(two.round(0x1p-7f), 0x1p-7f);
  EXPECT_EQ(two.round(0x1.2p-8f), 0.0f);
}

TEST(ActivationGrid, NamesWhatIsOutOfRange) {
  const auto broken = [](auto&& change) {
    ActivationGrid grid;
    change(grid);
    grid.check("site");
  };
  EXPECT_TRUE(throws_with("site: the width of its codes is 9",
                          [&] { broken([](ActivationGrid& g) { g.bits = 9; }); }));
  EXPECT_TRUE(throws_with("the step is 0", [&] { broken([](ActivationGrid& g) { g.step = 0; }); }));
  EXPECT_TRUE(throws_with("the step is", [&] { broken([](ActivationGrid& g) { g.step = kNaN; }); }));
  EXPECT_TRUE(throws_with("the step is", [&] { broken([](ActivationGrid& g) { g.step = 0x1p-140f; }); }));
  EXPECT_TRUE(
      throws_with("the zero point is 256", [&] { broken([](ActivationGrid& g) { g.zero_point = 256; }); }));
  EXPECT_TRUE(throws_with("the shift is 3", [&] { broken([](ActivationGrid& g) { g.shift = 3; }); }));
  EXPECT_TRUE(
      throws_with("levels per octave is 2", [&] { broken([](ActivationGrid& g) { g.per_octave = 2; }); }));
}

class RoundActivationsOp : public test::IsaTest {};
BALLAST_FOR_ALL_ISAS(RoundActivationsOp);

TEST_P(RoundActivationsOp, IsTheDefinitionBitForBit) {
  const std::vector<float> x = values();
  for (const ActivationGrid& grid : all_grids())
    for (const int64_t width : {int64_t(x.size()), int64_t(13)}) {
      SCOPED_TRACE(
          str(name_of(grid.kind), " ", grid.bits, " bits, zero ", grid.zero_point, ", shift ", grid.shift));
      const int64_t rows = int64_t(x.size()) / width;
      std::vector<float> y(size_t(rows * width));
      backend_->run(RoundActivations{.x = TensorView(x.data(), DType::f32, {rows, width}),
                                     .grid = grid,
                                     .y = OutputView(y.data(), DType::f32, {rows, width})});
      for (size_t i = 0; i < y.size(); ++i) {
        const float expected = grid.round(x[i]);
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(y[i]));
        } else {
          EXPECT_EQ(y[i], expected) << x[i];  // a zero may have either sign
        }
      }
    }
}

}  // namespace
}  // namespace ballast
