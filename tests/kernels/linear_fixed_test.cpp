// Affine weights behind inputs that have a grid: integer products.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/linear_ops.h"

namespace ballast {
namespace {

using test::Extras;
using test::IsaTest;
using test::Random;
using Kind = ActivationGrid::Kind;

class LinearFixed : public IsaTest {};
BALLAST_FOR_ALL_ISAS(LinearFixed);

// {out_features, in_features, group_size}: tails of every kind, several passes over a group, real layers.
constexpr int64_t kShapes[][3] = {{1, 4, 4},       {17, 60, 4},    {33, 96, 32},    {18, 192, 192},
                                  {20, 768, 768},  {15, 512, 128}, {5, 2052, 2052}, {16, 300, 300},
                                  {48, 1544, 772}, {9, 168, 168}};

std::vector<ActivationGrid> grids(const AffineMatrix& matrix) {
  std::vector<ActivationGrid> all;
  for (const int bits : {8, 6, 4}) {
    const int last = (1 << bits) - 1;
    for (const int zero : {0, last / 2 + 1, last / 5, last})
      all.push_back({.bits = bits, .step = 0.02f, .zero_point = zero});
    all.push_back({.kind = Kind::twin_sign, .bits = bits, .step = 0.002f, .shift = 4});
  }
  std::erase_if(all, [&](const ActivationGrid& grid) { return !integer_codes(grid, matrix.facts()); });
  return all;
}

template <class View>
std::vector<float> run_with(Backend& backend, const std::vector<float>& x, const View& weight,
                            const ActivationGrid& grid, const Extras& extras, int64_t tokens) {
  std::vector<float> y(size_t(tokens * weight.out_features), std::numeric_limits<float>::quiet_NaN());
  auto op = test::op_for(x, weight, extras, tokens, y);
  op.grid = grid;
  backend.run(op);
  return y;
}

// The integer sum of each group, then one fused step.
float expected(const AffineMatrix& matrix, const ActivationGrid& grid, const float* x, int64_t row) {
  float y = 0;
  for (int64_t group = 0; group < matrix.groups(); ++group) {
    int64_t sum = 0;
    const int64_t at = row * matrix.groups() + group;
    for (int64_t k = group * matrix.group_size; k < (group + 1) * matrix.group_size; ++k) {
      const int64_t code = std::llround(double(grid.round(x[k])) / double(grid.step));
      sum += (2 * int64_t(matrix.codes[size_t(row * matrix.in_features + k)]) -
              twice_zero(matrix.zero_points[size_t(at)], matrix.bits, matrix.half_zeros)) *
             code;
    }
    // Half a sum that need not be whole, or the sum itself: the same rounding.
    y = std::fma(float(sum), 0.5f * matrix.scale(row, group) * grid.step, y);
  }
  return y;
}

TEST_P(LinearFixed, IsTheIntegerProductOfAnyShapeBitForBit) {
  uint64_t seed = 700;
  for (const int bits : {2, 3, 4, 8})
    for (const auto& [out, in, group] : kShapes) {
      if (scalar() && out * in > 5000) continue;
      Random random(++seed);
      const AffineMatrix matrix = test::random_affine(random, bits, out, in, group);
      const auto weight = test::packed(*backend_, matrix);
      for (const ActivationGrid& grid : grids(matrix))
        for (const int64_t tokens : {1, 5, 13, 29}) {
          SCOPED_TRACE(str(bits, " bits, out ", out, ", in ", in, ", group ", group, ", ", name_of(grid.kind),
                           " of ", grid.bits, " bits around ", grid.zero_point, ", ", tokens, " tokens"));
          const std::vector<float> x = random.floats(tokens * in);
          const std::vector<float> y = run_with(*backend_, x, weight.view, grid, {}, tokens);
          for (int64_t t = 0; t < tokens; ++t)
            for (int64_t row = 0; row < out; ++row)
              ASSERT_EQ(y[size_t(t * out + row)], expected(matrix, grid, x.data() + t * in, row))
                  << t << ", " << row;
        }
    }
}

// All codes at their ends on both sides: what saturates in 16 bits would show here.
TEST_P(LinearFixed, NothingSaturates) {
  constexpr int64_t kOut = 19, kIn = 1536;
  for (const int bits : {2, 3, 4, 8})
    for (const int code : {0, (1 << bits) - 1})
      for (const int zero : {0, (1 << bits) - 1})
        for (const float extreme :
             {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
          Random random(1);
          AffineMatrix matrix = test::random_affine(random, bits, kOut, kIn, kIn);
          std::fill(matrix.codes.begin(), matrix.codes.end(), uint8_t(code));
          std::fill(matrix.zero_points.begin(), matrix.zero_points.end(), uint8_t(zero));
          const auto weight = test::packed(*backend_, matrix);
          const std::vector<float> x(kIn, extreme);
          for (const ActivationGrid& grid : grids(matrix)) {
            const std::vector<float> y = run_with(*backend_, x, weight.view, grid, {}, 1);
            for (int64_t row = 0; row < kOut; ++row)
              EXPECT_EQ(y[size_t(row)], expected(matrix, grid, x.data(), row))
                  << bits << " bits, codes " << code << ", zero " << zero << ", " << grid.bits
                  << " bits around " << grid.zero_point;
          }
        }
}

// Alone or in a batch, on one thread or several, with everything that is added; and a NaN reaches its own token alone.
TEST_P(LinearFixed, TokensDoNotSeeEachOther) {
  constexpr int64_t kOut = 70, kIn = 384, kTokens = 211;
  Random random(8);
  const AffineMatrix matrix = test::random_affine(random, 8, kOut, kIn, kIn);
  const ActivationGrid grid{.bits = 8, .step = 0.02f, .zero_point = 100};
  std::vector<float> x = random.floats(kTokens * kIn);
  x[3 * kIn + 7] = std::numeric_limits<float>::quiet_NaN();
  const Extras extras = test::random_extras(random, kTokens, kOut, Activation::gelu);
  const auto weight = test::packed(*backend_, matrix);
  const std::vector<float> all = run_with(*backend_, x, weight.view, grid, extras, kTokens);
  const auto several = test::cpu_backend(GetParam(), 3);
  EXPECT_TRUE(test::same_bits(all, run_with(*several, x, weight.view, grid, extras, kTokens)));
  for (const int64_t token : {0, 3, 100, 210}) {
    Extras own = extras;
    own.positions = {extras.positions[size_t(token)]};
    own.residual.assign(extras.residual.begin() + token * kOut, extras.residual.begin() + (token + 1) * kOut);
    const std::vector<float> alone = run_with(
        *backend_, {x.begin() + token * kIn, x.begin() + (token + 1) * kIn}, weight.view, grid, own, 1);
    for (int64_t row = 0; row < kOut; ++row) {
      const float in_batch = all[size_t(token * kOut + row)];
      EXPECT_EQ(std::memcmp(&in_batch, &alone[size_t(row)], 4), 0) << token;
      EXPECT_EQ(std::isnan(in_batch), token == 3);
    }
  }
}

// A layer whose codes have no integer product reads what they stand for.
TEST_P(LinearFixed, OtherGridsAreDecoded) {
  constexpr int64_t kOut = 20, kIn = 96, kTokens = 9;
  Random random(9);
  const std::vector<float> x = random.floats(kTokens * kIn);
  const AffineMatrix matrix = test::random_affine(random, 4, kOut, kIn, 32);
  const ActivationGrid grid{.kind = Kind::twin_size, .bits = 4, .step = 0.01f, .shift = 4};
  std::vector<float> rounded(x.size());
  for (size_t i = 0; i < x.size(); ++i) rounded[i] = grid.round(x[i]);
  const auto weight = test::packed(*backend_, matrix);
  EXPECT_TRUE(test::same_bits(run_with(*backend_, x, weight.view, grid, {}, kTokens),
                              test::run(*backend_, rounded, weight.view, {}, kTokens)));
  const auto dense = test::packed(*backend_, test::decoded(matrix));
  EXPECT_TRUE(test::same_bits(run_with(*backend_, x, dense.view, grid, {}, kTokens),
                              test::run(*backend_, rounded, dense.view, {}, kTokens)));
}

}  // namespace
}  // namespace ballast
