#include "quantize/affine_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace ballast {
namespace {

std::vector<float> gaussian(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

double squared_error(const Grid& grid, const std::vector<float>& weights) {
  double sum = 0;
  for (float weight : weights) sum += std::pow(double(weight - grid.round(weight)), 2);
  return sum;
}

// Exports store half of them, which has to be normal in binary16 as well.
TEST(AffineFit, ScalesOfHalfZeroPointsCanBeHalved) {
  for (const float width : {1e-7f, 1e-4f, 3e-4f, 1e-3f}) {
    const std::vector<float> weights = {-width, 0.3f * width, width};
    for (const int bits : {2, 3, 4}) {
      const float scale = fit_grid(weights, {.bits = bits, .half_zero_bits = 4}).scale, half = scale / 2;
      EXPECT_EQ(f16_to_f32(f32_to_f16(half)), half);
      EXPECT_GE(half, 0x1p-14f) << bits << " " << width;
    }
    EXPECT_LE(fit_grid(weights, {.bits = 2}).scale, std::max(width, 0x1p-14f));
  }
}

TEST(AffineFit, CodesCoverTheRangeAndZeroIsExact) {
  for (int bits : {2, 3, 4, 8}) {
    const auto weights = gaussian(300, uint64_t(bits));
    const Grid grid = fit_grid(weights, {.bits = bits});
    EXPECT_EQ(grid.round(0), 0.0f);
    for (float weight : weights) {
      EXPECT_GE(grid.code(weight), 0);
      EXPECT_LE(grid.code(weight), (1 << bits) - 1);
      // Half a step, and another half where rounding the zero point moved the ends.
      EXPECT_LE(std::fabs(weight - grid.round(weight)), grid.scale * 1.001f) << bits;
    }
  }
}

TEST(AffineFit, ScaleIsAStoredBinary16) {
  const Grid grid = fit_grid(gaussian(64, 3), {.bits = 3});
  EXPECT_EQ(grid.scale, f16_to_f32(f32_to_f16(grid.scale)));
}

TEST(AffineFit, RangeHoldsZeroForOneSidedWeights) {
  const Grid positive = fit_grid(std::vector<float>{2, 3, 4}, {.bits = 2});
  EXPECT_EQ(positive.zero_point, 0);
  EXPECT_NEAR(positive.round(4), 4, 1e-2);
  const Grid negative = fit_grid(std::vector<float>{-2, -3, -4}, {.bits = 2});
  EXPECT_EQ(negative.zero_point, 3);
  EXPECT_NEAR(negative.round(-4), -4, 1e-2);
}

TEST(AffineFit, ZerosAndTinyWeightsGetAUsableScale) {
  for (float value : {0.0f, 1e-30f, 1e-8f}) {
    const Grid grid = fit_grid(std::vector<float>(16, value), {.bits = 4});
    EXPECT_GE(grid.scale, 0x1p-14f);
    EXPECT_NEAR(grid.round(value), value, 1e-4);
  }
}

TEST(AffineFit, SymmetricGridsShareTheMiddleZeroPoint) {
  for (int bits : {2, 3, 4})
    EXPECT_EQ(fit_grid(gaussian(64, 9), {.bits = bits, .symmetric = true}).zero_point, 1 << (bits - 1));
}

TEST(AffineFit, ClipSearchNeverRoundsWorseByItsNormAndHelpsWithAnOutlier) {
  auto weights = gaussian(256, 5);
  weights[17] = 12;
  const Grid plain = fit_grid(weights, {.bits = 3}),
             clipped = fit_grid(weights, {.bits = 3, .clip_search = true});
  EXPECT_LT(clipped.scale, plain.scale);
  EXPECT_LT(squared_error(clipped, weights), squared_error(plain, weights));
}

TEST(AffineFit, RangeShrinkScalesTheStep) {
  const auto weights = gaussian(256, 6);
  const Grid plain = fit_grid(weights, {.bits = 4}),
             shrunk = fit_grid(weights, {.bits = 4, .range_shrink = 0.5});
  EXPECT_NEAR(shrunk.scale, plain.scale / 2, plain.scale * 1e-3);
}

TEST(AffineFit, TiesRoundToEven) {
  const Grid grid{.scale = 1, .zero_point = 0, .max_code = 15};
  EXPECT_EQ(grid.code(0.5f), 0);
  EXPECT_EQ(grid.code(1.5f), 2);
  EXPECT_EQ(grid.code(2.5f), 2);
  EXPECT_EQ(grid.code(99), 15);
  EXPECT_EQ(grid.code(-3), 0);
}

TEST(AffineFit, RefusesWhatCannotBeStored) {
  EXPECT_THROW(fit_grid(std::vector<float>{1, NAN}, {.bits = 4}), Error);
  EXPECT_THROW(fit_grid(std::vector<float>{-1e7f, 1e7f}, {.bits = 2}), Error);
}

TEST(AffineFit, HalfZeroPointsPutEvenlySpreadWeightsOnTheirLevels) {
  const GridOptions half{.bits = 2, .half_zero_bits = 4};
  const std::vector<float> weights = {-1.5f, -0.5f, 0.5f, 1.5f};
  const Grid grid = fit_grid(weights, half);
  EXPECT_EQ(grid.zero, 1.5f);
  for (int code = 0; code < 4; ++code) EXPECT_EQ(grid.code(weights[size_t(code)]), code);
  EXPECT_LT(squared_error(grid, weights), 1e-6);
  EXPECT_GT(squared_error(fit_grid(weights, {.bits = 2}), weights), 0.5);
  EXPECT_EQ(fit_zero_point(weights, 1, half).zero, 1.5f);
  for (const int bits : {2, 3, 4})  // the middle of the codes
    EXPECT_EQ(fit_grid(weights, {.bits = bits, .symmetric = true, .half_zero_bits = 4}).zero,
              0.5f * float((1 << bits) - 1));
}

TEST(AffineFit, NearestCodeByTrial) {
  for (const float zero : {0.0f, 1.0f, 1.5f, 2.5f, 3.0f})
    for (float steps = -4.9f; steps < 5; steps += 0.2f) {
      float best = 0;
      for (float code = 1; code <= 3; ++code)
        if (std::fabs(code - zero - steps) < std::fabs(best - zero - steps)) best = code;
      EXPECT_EQ(nearest_code(steps, zero, 3), best) << steps << " from " << zero;
    }
}

}  // namespace
}  // namespace ballast
