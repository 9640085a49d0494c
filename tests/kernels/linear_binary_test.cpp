// Residual binary weights beside int8 activations, in integers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops/embedding.h"
#include "tests/support/linear_ops.h"

namespace ballast {
namespace {

using test::Extras;
using test::IsaTest;
using test::Random;
using test::run;
using test::same_bits;

class LinearBinary : public IsaTest {};
BALLAST_FOR_ALL_ISAS(LinearBinary);

// {out_features, in_features, block_size}: whole chunks and shorter ones, blocks of several chunks, a short last block.
constexpr int64_t kShapes[][3] = {{150, 256, 128},  {33, 96, 128},   {17, 768, 128}, {70, 384, 100},
                                  {31, 137, 65536}, {130, 131, 128}, {16, 300, 64},  {5, 2048, 192}};

TEST_P(LinearBinary, AnyShapeAndBlock) {
  uint64_t seed = 300;
  for (const auto& [out, in, block] : kShapes) {
    SCOPED_TRACE(str("out ", out, ", in ", in, ", block ", block));
    Random random(++seed);
    ResidualBinaryMatrix matrix = test::random_binary(random, out, in, block);
    // Masks of every density, none and all among them.
    for (uint8_t& bit : matrix.salient) bit = random.below(7) < int64_t(seed % 8);
    ASSERT_NO_FATAL_FAILURE(check_matrix(GetParam(), matrix, test::decoded(matrix), seed,
                                         test::binary_bound(matrix, true), "int8"));
  }
}

// Activations that are whole numbers of steps are not rounded: what is left is the rounding of a few sums.
TEST_P(LinearBinary, SumsAreExact) {
  const auto backend = test::cpu_backend(GetParam(), 1, "int8");
  uint64_t seed = 400;
  for (const auto& [out, in, block] : kShapes) {
    SCOPED_TRACE(str("out ", out, ", in ", in, ", block ", block));
    Random random(++seed);
    ResidualBinaryMatrix matrix = test::random_binary(random, out, in, block);
    for (uint8_t& bit : matrix.salient) bit = random.below(7) < int64_t(seed % 8);
    constexpr int64_t kTokens = 17;
    std::vector<float> x(static_cast<size_t>(kTokens * in));
    for (int64_t token = 0; token < kTokens; ++token)
      for (int64_t k = 0; k < in; ++k) {
        // The first column of every chunk holds the largest number that a byte is used for.
        const int64_t digit = k % block % 128 == 0 ? 127 : random.below(255) - 127;
        x[size_t(token * in + k)] = std::ldexp(float(digit), int(token) - 8);
      }
    const auto weight = test::packed(*backend, matrix);
    for (int64_t tokens : {int64_t(1), kTokens})
      ASSERT_TRUE(test::within_bounds(
          run(*backend, x, weight.view, {}, tokens),
          reference(test::decoded(matrix), x, {}, tokens, test::binary_bound(matrix, false))));
  }
}

// They take the float kernel, alone: their results are those of the decoded matrix, and their neighbours do not
// notice them.
TEST_P(LinearBinary, TokensThatAreNotFinite) {
  constexpr int64_t kOut = 37, kIn = 320, kTokens = 9;
  Random random(4);
  const ResidualBinaryMatrix matrix = test::random_binary(random, kOut, kIn, 128);
  const auto backend = test::cpu_backend(GetParam(), 2, "int8");
  const auto weight = test::packed(*backend, matrix);
  const auto dense = test::packed(*backend, test::decoded(matrix));
  const Extras extras = test::random_extras(random, kTokens, kOut, Activation::none);
  std::vector<float> x = random.floats(kTokens * kIn);
  const std::vector<float> finite = run(*backend, x, weight.view, extras, kTokens);
  x[2 * kIn + 5] = std::numeric_limits<float>::infinity();
  x[3 * kIn + 319] = -std::numeric_limits<float>::infinity();
  x[8 * kIn] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = run(*backend, x, weight.view, extras, kTokens);
  const std::vector<float> floats = run(*backend, x, dense.view, extras, kTokens);
  ASSERT_NO_FATAL_FAILURE(test::expect_floats_of_special_tokens(y, floats, finite, {2, 3, 8}, kOut));
}

TEST_P(LinearBinary, ShortBlocksStayFloat) {
  Random random(6);
  const ResidualBinaryMatrix matrix = test::random_binary(random, 20, 160, 32);
  const std::vector<float> x = random.floats(3 * 160);
  const auto exact = test::cpu_backend(GetParam(), 1, "f32"),
             bytes = test::cpu_backend(GetParam(), 1, "int8");
  const auto weight = test::packed(*exact, matrix), same = test::packed(*bytes, matrix);
  EXPECT_TRUE(same_bits(run(*bytes, x, same.view, {}, 3), run(*exact, x, weight.view, {}, 3)));
}

TEST_P(LinearBinary, RowsOfATableAreExact) {
  Random random(7);
  const ResidualBinaryMatrix matrix = test::random_binary(random, 37, 320, 100);
  const auto backend = test::cpu_backend(GetParam(), 1, "int8");
  const auto table = test::packed(*backend, matrix);
  const test::DenseMatrix values = test::decoded(matrix);
  const std::vector<int32_t> ids = {0, 36, 16};
  std::vector<float> y(3 * 320);
  backend->run(Embedding<ResidualBinaryView>{
      .ids = test::view_of(ids), .table = table.view, .y = OutputView(y.data(), DType::f32, {3, 320})});
  for (size_t t = 0; t < 3; ++t)
    for (size_t k = 0; k < 320; ++k)
      ASSERT_EQ(y[t * 320 + k], values.values[size_t(ids[t]) * 320 + k]) << t << ", " << k;
}

}  // namespace
}  // namespace ballast
