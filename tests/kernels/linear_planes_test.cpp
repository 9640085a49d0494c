// Affine weights times activations in integers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/linear_ops.h"

namespace ballast {
namespace {

using test::check_matrix;
using test::DenseMatrix;
using test::Extras;
using test::IsaTest;
using test::kRound32;
using test::planes_bound;
using test::Random;
using test::run;
using test::same_bits;

class LinearPlanes : public IsaTest {};
BALLAST_FOR_ALL_ISAS(LinearPlanes);

// {out_features, in_features, group_size}: whole chunks and units, tails of both, groups of every residue, rows
// beyond a tile, and the widths of real layers.
constexpr int64_t kShapes[][3] = {
    {1, 1, 1},       {1, 16, 16},     {150, 144, 16}, {33, 96, 32},   {17, 320, 64},  {70, 384, 128},
    {31, 37, 37},    {130, 131, 131}, {16, 300, 300}, {18, 192, 192}, {20, 768, 768}, {15, 2048, 128},
    {5, 2048, 2048}, {48, 60, 4},     {3, 70, 7},     {9, 504, 168},  {17, 256, 256}};

void check_shapes(const std::string& isa, const std::string& activations) {
  uint64_t seed = 100;
  for (int bits : {2, 3, 4, 8})
    for (const auto& [out, in, group] : kShapes) {
      SCOPED_TRACE(str(bits, " bits, out ", out, ", in ", in, ", group ", group));
      Random random(++seed);
      const AffineMatrix matrix = test::random_affine(random, bits, out, in, group);
      ASSERT_NO_FATAL_FAILURE(check_matrix(isa, matrix, test::decoded(matrix), seed,
                                           planes_bound(bits, group, activations == "int8"), activations));
    }
}

TEST_P(LinearPlanes, ExactWeightsOfAnyShapeAndGroup) {
  check_shapes(GetParam(), "f32");
}

TEST_P(LinearPlanes, Int8WeightsOfAnyShapeAndGroup) {
  check_shapes(GetParam(), "int8");
}

// The error of the exact mode is that of a sum in f32: with magnitudes alike, a few units in the last place of
// the root of the summed squares; int8's is thousands of times larger.
TEST_P(LinearPlanes, ErrorsAreOfTheirSizes) {
  constexpr int64_t kOut = 64, kIn = 2048;
  Random random(5);
  const std::vector<float> x = random.floats(kIn);
  for (int bits : {2, 3, 4}) {
    const AffineMatrix matrix = test::random_affine(random, bits, kOut, kIn, 128);
    const DenseMatrix values = test::decoded(matrix);
    const auto error = [&](const std::string& activations) {
      const auto backend = test::cpu_backend(GetParam(), 1, activations);
      const auto weight = test::packed(*backend, matrix);
      const std::vector<float> y = run(*backend, x, weight.view, {}, 1);
      double squares = 0, scale = 0;
      for (int64_t row = 0; row < kOut; ++row) {
        double sum = 0;
        for (int64_t k = 0; k < kIn; ++k) {
          const double product = double(x[size_t(k)]) * values.values[size_t(row * kIn + k)];
          sum += product;
          scale += product * product;
        }
        squares += (sum - y[size_t(row)]) * (sum - y[size_t(row)]);
      }
      return std::sqrt(squares / scale);
    };
    EXPECT_LT(error("f32"), 16 * kRound32) << bits << " bits";
    EXPECT_GT(error("int8"), 1e-3) << bits << " bits";
    EXPECT_LT(error("int8"), 1.0 / 127) << bits << " bits";
  }
}

// The largest codes against digits as large as they come, with zero points at both ends.
TEST_P(LinearPlanes, NothingOverflows) {
  constexpr int64_t kIn = 512;
  // In steps of 2^-22: three digits near ±127, and the lower two at −128.
  const float values[] = {8355711.0f, -8355711.0f, float(126 * 65536 - 128 * 257),
                          float(-126 * 65536 - 128 * 257)};
  for (const char* activations : {"f32", "int8"}) {
    const auto backend = test::cpu_backend(GetParam(), 1, activations);
    for (int bits : {2, 3, 4, 8})
      for (int64_t group : {kIn, int64_t(128), int64_t(32)})
        for (const bool zero_at_end : {false, true}) {
          Random random(1);
          AffineMatrix matrix = test::random_affine(random, bits, 16, kIn, group);
          for (uint8_t& code : matrix.codes) code = zero_at_end ? 0 : uint8_t(matrix.max_code());
          for (uint8_t& zero : matrix.zero_points) zero = zero_at_end ? uint8_t(matrix.max_code()) : 0;
          const auto weight = test::packed(*backend, matrix);
          const DenseMatrix decoded = test::decoded(matrix);
          for (const float value : values)
            for (const int64_t tokens : {1, 7}) {
              std::vector<float> x(size_t(tokens * kIn), value * 0x1p-22f);
              for (int64_t k = 0; k < tokens * kIn; k += 32) x[size_t(k)] = 8355711 * 0x1p-22f;
              ASSERT_TRUE(within_bounds(
                  run(*backend, x, weight.view, {}, tokens),
                  test::reference(decoded, x, {}, tokens,
                                  planes_bound(bits, group, std::string(activations) == "int8"))))
                  << bits << " bits, group " << group << ", x " << value << ", " << activations;
            }
        }
  }
}

TEST_P(LinearPlanes, VerySmallAndVeryLargeActivations) {
  constexpr int64_t kIn = 384;
  Random random(2);
  const AffineMatrix matrix = test::random_affine(random, 4, 33, kIn, 128);
  const DenseMatrix decoded = test::decoded(matrix);
  for (const char* activations : {"f32", "int8"}) {
    const auto backend = test::cpu_backend(GetParam(), 1, activations);
    const auto weight = test::packed(*backend, matrix);
    for (const float size : {0.0f, 1e-45f, 1e-40f, 1e-30f, 1e-20f, 1e20f, 1e34f}) {
      std::vector<float> x = random.floats(3 * kIn);
      for (size_t k = 0; k < x.size(); ++k)
        if (k / 128 % 3 != 1) x[k] *= size;
      ASSERT_TRUE(within_bounds(
          run(*backend, x, weight.view, {}, 3),
          test::reference(decoded, x, {}, 3, planes_bound(4, 128, std::string(activations) == "int8"))))
          << size << ", " << activations;
    }
    const std::vector<float> none(kIn, 0.0f);
    for (const float y : run(*backend, none, weight.view, {}, 1)) ASSERT_EQ(y, 0);
  }
}

// Every batch of up to forty tokens cuts into blocks in its own way.
TEST_P(LinearPlanes, ATokenIsTheSameInAnyCompany) {
  constexpr int64_t kOut = 21, kIn = 160, kTokens = 40;
  Random random(3);
  const std::vector<float> x = random.floats(kTokens * kIn);
  for (const char* activations : {"f32", "int8"})
    for (int bits : {2, 3, 4, 8}) {
      const AffineMatrix matrix = test::random_affine(random, bits, kOut, kIn, 32);
      const auto backend = test::cpu_backend(GetParam(), 1, activations);
      const auto weight = test::packed(*backend, matrix);
      const std::vector<float> whole = run(*backend, x, weight.view, {}, kTokens);
      for (int64_t tokens = 1; tokens < kTokens; ++tokens)
        ASSERT_TRUE(
            same_bits(run(*backend, x, weight.view, {}, tokens), test::first_rows(whole, tokens, kOut)))
            << tokens << " tokens, " << bits << " bits, " << activations;
    }
}

test::Packed<AffineView> packed_by_columns(Backend& backend, const AffineMatrix& matrix) {
  AffineView view = matrix.facts();
  view.by_columns = true;
  return {backend, matrix, view};
}

// Zeros of every density, whole chunks of them and infinities included.
TEST_P(LinearPlanes, ByColumnsIsBitForBitTheSame) {
  uint64_t seed = 900;
  for (const char* activations : {"f32", "int8"}) {
    const auto backend = test::cpu_backend(GetParam(), 2, activations);
    for (int bits : {2, 3, 4})
      for (const auto& [out, in, group] : kShapes) {
        SCOPED_TRACE(str(bits, " bits, out ", out, ", in ", in, ", group ", group, ", ", activations));
        Random random(++seed);
        const int64_t rows = out % 2 == 0 ? 16 * out : out;  // several units of rows
        const AffineMatrix matrix = test::random_affine(random, bits, rows, in, group);
        const auto tiles = test::packed(*backend, matrix), columns = packed_by_columns(*backend, matrix);
        constexpr int64_t kTokens = 9;
        const Extras extras = test::random_extras(random, kTokens, rows, Activation::relu);
        std::vector<float> x = random.floats(kTokens * in);
        for (int64_t token = 0; token < kTokens; ++token)
          for (int64_t k = 0; k < in; ++k)
            if (int64_t(random.below(8)) < token || (token > 4 && k / 128 % 2 == 0))
              x[size_t(token * in + k)] = 0;
        if (seed % 3 == 0) x[size_t(in)] = std::numeric_limits<float>::infinity();
        ASSERT_TRUE(same_bits(run(*backend, x, columns.view, extras, kTokens),
                              run(*backend, x, tiles.view, extras, kTokens)));
        for (int64_t token = 0; token < kTokens; ++token) {
          const std::vector<float> alone(x.begin() + token * in, x.begin() + (token + 1) * in);
          ASSERT_TRUE(
              same_bits(run(*backend, alone, columns.view, {}, 1), run(*backend, alone, tiles.view, {}, 1)))
              << "token " << token;
        }
      }
  }
}

// They take the float kernel, alone: their results are those of the decoded matrix, and their neighbours do not
// notice them.
TEST_P(LinearPlanes, TokensThatAreNotFinite) {
  constexpr int64_t kOut = 37, kIn = 320, kTokens = 9;
  const float infinity = std::numeric_limits<float>::infinity(),
              nan = std::numeric_limits<float>::quiet_NaN();
  Random random(4);
  for (const char* activations : {"f32", "int8"})
    for (int bits : {2, 3, 4, 8}) {
      AffineMatrix matrix = test::random_affine(random, bits, kOut, kIn, 64);
      for (int64_t row = 0; row < kOut; row += 3)
        matrix.codes[size_t(row * kIn + 5)] = uint8_t(matrix.zero(row, 0));
      const auto backend = test::cpu_backend(GetParam(), 2, activations);
      const auto weight = test::packed(*backend, matrix);
      const auto dense = test::packed(*backend, test::decoded(matrix));
      const Extras extras = test::random_extras(random, kTokens, kOut, Activation::none);
      std::vector<float> x = random.floats(kTokens * kIn);
      const std::vector<float> finite = run(*backend, x, weight.view, extras, kTokens);
      x[2 * kIn + 5] = infinity;
      x[3 * kIn + 319] = -infinity;
      x[8 * kIn] = nan;
      const std::vector<float> y = run(*backend, x, weight.view, extras, kTokens);
      const std::vector<float> floats = run(*backend, x, dense.view, extras, kTokens);
      ASSERT_NO_FATAL_FAILURE(test::expect_floats_of_special_tokens(y, floats, finite, {2, 3, 8}, kOut));
      // Alone too, and where the residual is the output.
      std::vector<float> alone(x.begin() + 2 * kIn, x.begin() + 3 * kIn),
          out(extras.residual.begin(), extras.residual.begin() + kOut);
      const Extras residual{.residual = out};
      const std::vector<float> expected = run(*backend, alone, dense.view, residual, 1);
      auto op = test::op_for(alone, weight.view, residual, 1, out);
      op.residual = op.y;
      backend->run(op);
      for (int64_t row = 0; row < kOut; ++row)
        ASSERT_TRUE(out[size_t(row)] == expected[size_t(row)] ||
                    (std::isnan(out[size_t(row)]) && std::isnan(expected[size_t(row)])));
    }
}

}  // namespace
}  // namespace ballast
