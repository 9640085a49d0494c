// Linear layers of the CUDA backend, on the emulator.
#include "kernels/ops/linear.h"

#include <gtest/gtest.h>

#include "engine/core/tensor.h"
#include "kernels/ops/embedding.h"
#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

using test::emulated_backend;
using test::Extras;
using test::fragments_bound;
using test::Random;
using test::reference;
using test::run;
using test::same_bits;
using test::within_bounds;

struct Width {
  int bits;
  const char* activations;
};
class SimtLinear : public testing::TestWithParam<Width> {
 protected:
  int bits() const { return GetParam().bits; }
  std::string activations() const { return GetParam().activations; }

  void expect_near(const Shape& shape, int64_t group_size, std::initializer_list<int64_t> token_counts) {
    SCOPED_TRACE(str(shape.text(), ", groups of ", group_size));
    Random random(uint64_t(shape[0] * 7 + shape[1] + bits()));
    const auto backend = emulated_backend(activations());
    const AffineMatrix matrix = test::random_affine(random, bits(), shape[0], shape[1], group_size);
    const auto weight = test::packed(*backend, matrix);
    const auto values = test::decoded(matrix);
    for (const int64_t tokens : token_counts) {
      const std::vector<float> x = random.floats(tokens * shape[1], -3, 3);
      const Extras extras = test::random_extras(random, tokens, shape[0], Activation(tokens % 3));
      ASSERT_TRUE(within_bounds(run(*backend, x, weight.view, extras, tokens),
                                reference(values, x, extras, tokens, fragments_bound(matrix, activations()))))
          << tokens << " tokens";
    }
  }
};
INSTANTIATE_TEST_SUITE_P(, SimtLinear,
                         testing::Values(Width{2, "f32"}, Width{3, "f32"}, Width{4, "f32"}, Width{8, "f32"},
                                         Width{2, "bf16"}, Width{3, "bf16"}, Width{4, "bf16"},
                                         Width{8, "bf16"}),
                         [](const auto& width) {
                           return str(width.param.bits, "bits_",
                                      width.param.activations[0] == 'b' ? "bf16" : "f16");
                         });

TEST_P(SimtLinear, GroupsOf128OfAnyNumberOfTokens) {
  expect_near({272, 1024}, 128, {1, 2, 5, 8, 9, 16, 17, 32, 33, 64});
}
TEST_P(SimtLinear, MoreTokensThanATileHolds) {
  expect_near({48, 256}, 64, {65, 129, 200});
}
// 65 to 128 tokens at once: groups of whole chunks and of parts of one, a last stage of one unit or three, blocks of rows that
// several blocks of the grid share, and with 8 bits in groups of 16 more shared memory than there is.
TEST_P(SimtLinear, WideTiles) {
  expect_near({272, 1024}, 128, {70, 128});
  for (const int64_t group_size : {16, 96, 768}) expect_near({40, 768}, group_size, {66});
  expect_near({130, 320}, 64, {97});
  expect_near({17, 176}, 16, {80});
}
TEST_P(SimtLinear, GroupsOfEverySize) {
  for (const int64_t group_size : {16, 32, 48, 64, 96, 192, 256, 768})
    expect_near({40, 768}, group_size, {3, 20});
}
TEST_P(SimtLinear, ShapesThatFillNoTile) {
  for (const Shape& shape : {Shape{1, 16}, {15, 48}, {17, 80}, {129, 320}, {200, 272}, {16, 1040}})
    expect_near(shape, 16, {1, 6});
  expect_near({130, 192}, 192, {1, 7});
  expect_near({33, 36}, 9, {1, 3});  // decoded to rows
}
TEST_P(SimtLinear, ManyTokensAreDecodedAndMultipliedWhole) {
  Random random(4);
  const auto backend = emulated_backend(activations());
  const AffineMatrix matrix = test::random_affine(random, bits(), 24, 96, 32);
  const auto weight = test::packed(*backend, matrix);
  const int64_t tokens = CudaBackend::kDecodeTokens;
  const std::vector<float> x = random.floats(tokens * 96);
  // Weights are rounded, too.
  const auto bound = [&](const float* from, const float* w, int64_t in_features, int64_t) {
    return (2.1 * test::half_rounding(activations()) + double(in_features) * test::kRound32) *
               test::magnitude_of(from, w, in_features) +
           double(in_features) * 0x1p-22;
  };
  EXPECT_TRUE(within_bounds(run(*backend, x, weight.view, {}, tokens),
                            reference(test::decoded(matrix), x, {}, tokens, bound)));
}

TEST_P(SimtLinear, ATokensBitsDependNeitherOnItsBatchNorOnTheOrderOfBlocks) {
  Random random(5);
  const auto backend = emulated_backend(activations());
  const AffineMatrix matrix = test::random_affine(random, bits(), 144, 1536, 64);
  const auto weight = test::packed(*backend, matrix);
  const std::vector<float> x = random.floats(70 * 1536);
  const std::vector<float> whole = run(*backend, x, weight.view, {}, 70);
  for (const int64_t tokens : {1, 8, 11, 30, 64})
    for (const uint64_t seed : {2, 3}) {
      simt::set_seed(seed);
      EXPECT_TRUE(same_bits(run(*backend, x, weight.view, {}, tokens), test::first_rows(whole, tokens, 144)))
          << tokens << " tokens";
    }
  simt::set_seed(1);
}

// Exactly representable x, so that the only errors left are of f32 sums: codes must come out of the words as they went in.
TEST_P(SimtLinear, EveryCodeMeetsItsColumn) {
  const auto backend = emulated_backend(activations());
  AffineMatrix matrix{.bits = bits(), .out_features = 32, .in_features = 128, .group_size = 128};
  Random random(6);
  matrix.codes = test::random_codes(random, bits(), 32 * 128);
  matrix.scales.assign(32, f32_to_f16(1));
  matrix.zero_points.assign(32, 1);
  const auto weight = test::packed(*backend, matrix);
  for (int64_t column = 0; column < 128; ++column) {
    std::vector<float> x(128, 0.0f);
    x[size_t(column)] = 1;
    const std::vector<float> y = run(*backend, x, weight.view, {}, 1);
    for (int64_t row = 0; row < 32; ++row)
      ASSERT_EQ(y[size_t(row)], matrix.value(row, column)) << "row " << row << ", column " << column;
  }
}

// Zero points, and the offsets that 2-bit codes keep, are taken back as multiples of Σx. Were it that of x before its rounding,
// an offset of 64 would make 64 times the rounding's error of it, less than the bound of a long sum allows. So: few columns at
// a time, and nothing but the errors of f32 sums.
TEST_P(SimtLinear, SumsOfXAreOfItsRoundedValues) {
  Random random(11);
  const auto backend = emulated_backend(activations());
  const AffineMatrix matrix = test::random_affine(random, bits(), 32, 256, 64);
  const auto weight = test::packed(*backend, matrix);
  constexpr int64_t kTokens = 64, kColumns = 4;  // that each token has
  std::vector<float> x(kTokens * 256), rounded;
  for (int64_t token = 0; token < kTokens; ++token)
    for (int64_t i = 0; i < kColumns; ++i)
      x[size_t(token * 256 + token * kColumns + i)] = random.uniform(-3, 3);
  for (const float value : x)
    rounded.push_back(activations() == "bf16" ? bf16_to_f32(f32_to_bf16(value))
                                              : f16_to_f32(f32_to_f16(value)));
  ASSERT_TRUE(
      within_bounds(run(*backend, x, weight.view, {}, kTokens),
                    reference(test::decoded(matrix), rounded, {}, kTokens, fragments_bound(matrix, 0.0))));
}

TEST(SimtLinearRows, DenseWeightsOfAnyShape) {
  const auto backend = emulated_backend();
  uint64_t seed = 1;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const Shape& shape : {Shape{1, 1}, {15, 16}, {33, 5}, {18, 260}})
      for (const int64_t tokens : {1, 3, 15}) {
        Random random(++seed);
        const test::DenseMatrix matrix(dtype, shape[0], shape[1], random.floats(shape.elements()));
        const auto weight = test::packed(*backend, matrix);
        const std::vector<float> x = random.floats(tokens * shape[1]);
        const Extras extras = test::random_extras(random, tokens, shape[0], Activation(tokens % 3));
        ASSERT_TRUE(within_bounds(run(*backend, x, weight.view, extras, tokens),
                                  reference(matrix, x, extras, tokens)))
            << name_of(dtype) << " " << shape.text() << ", " << tokens << " tokens";
      }
}

TEST(SimtLinearRows, SixteenBitWeightsOfManyTokensAreMultipliedWhole) {
  const auto backend = emulated_backend();
  for (const DType dtype : {DType::f16, DType::bf16}) {
    Random random(9);
    const test::DenseMatrix matrix(dtype, 40, 72, random.floats(40 * 72));
    const auto weight = test::packed(*backend, matrix);
    const std::vector<float> x = random.floats(20 * 72);
    const Extras extras = test::random_extras(random, 20, 40, Activation::gelu);
    const double rounding = dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
    const auto bound = [&](const float* from, const float* w, int64_t in_features, int64_t row) {
      return rounding * test::magnitude_of(from, w, in_features) + double(in_features) * 0x1p-25 +
             test::chain_bound(from, w, in_features, row);
    };
    EXPECT_TRUE(
        within_bounds(run(*backend, x, weight.view, extras, 20), reference(matrix, x, extras, 20, bound)));
  }
}

// Values that codes stand for are rounded to 16 bits, as x is; blocks of 7 or 16 columns are decoded to rows. The last block may be
// shorter than the others, and K need not be a multiple of anything.
TEST(SimtLinearBinary, OfEveryShapeAndBlock) {
  uint64_t seed = 80;
  for (const char* activations : {"f32", "bf16"})
    for (const auto& [shape, block_size] :
         {std::pair(Shape{150, 448}, 128), std::pair(Shape{33, 300}, 128), std::pair(Shape{40, 1040}, 256),
          std::pair(Shape{17, 192}, 64), std::pair(Shape{17, 96}, 16), std::pair(Shape{1, 37}, 65536),
          std::pair(Shape{16, 300}, 7)}) {
      Random random(++seed);
      const auto backend = emulated_backend(activations);
      const auto matrix = test::random_binary(random, shape[0], shape[1], block_size);
      const auto weight = test::packed(*backend, matrix);
      const double rounding = test::half_rounding(activations);
      const auto bound = [&](const float* x, const float* w, int64_t in_features, int64_t row) {
        double of_small = 0;
        for (int64_t k = 0; k < in_features; ++k)
          of_small += (std::abs(double(x[k])) + std::abs(double(w[k]))) * 0x1p-25;
        return 2.1 * rounding * test::magnitude_of(x, w, in_features) + of_small +
               4 * test::chain_bound(x, w, in_features, row);
      };
      for (const int64_t tokens : {1, 7, 41}) {
        const std::vector<float> x = random.floats(tokens * shape[1]);
        const Extras extras = test::random_extras(random, tokens, shape[0], Activation(tokens % 3));
        ASSERT_TRUE(within_bounds(run(*backend, x, weight.view, extras, tokens),
                                  reference(test::decoded(matrix), x, extras, tokens, bound)))
            << activations << ", " << shape.text() << ", blocks of " << block_size << ", " << tokens
            << " tokens";
      }
    }
}

// Small groups with real zero points, and outliers: random_outliers keeps row 1 without any and makes the last row of nothing
// else. A group of 9 columns is decoded to rows.
TEST(SimtLinearOutliers, OfEveryWidthAndGroup) {
  uint64_t seed = 50;
  for (const char* activations : {"f32", "bf16"})
    for (const int bits : {2, 3, 4, 8})
      for (const auto& [shape, group_size] :
           {std::pair(Shape{150, 336}, 16), std::pair(Shape{37, 576}, 64), std::pair(Shape{20, 36}, 9)}) {
        Random random(++seed);
        const auto backend = emulated_backend(activations);
        const auto matrix = test::random_outliers(random, bits, 3, shape[0], shape[1], group_size);
        const auto weight = test::packed(*backend, matrix);
        for (const int64_t tokens : {1, 7, 41}) {
          const std::vector<float> x = random.floats(tokens * shape[1]);
          const Extras extras = test::random_extras(random, tokens, shape[0], Activation(tokens % 3));
          ASSERT_TRUE(within_bounds(run(*backend, x, weight.view, extras, tokens),
                                    reference(test::decoded(matrix), x, extras, tokens,
                                              test::fragments_bound(matrix, activations))))
              << bits << " bits, " << activations << ", " << shape.text() << ", " << tokens << " tokens";
        }
      }
}

TEST(SimtEmbedding, RowsOfEveryEncodingAreExact) {
  const auto backend = emulated_backend();
  const std::vector<int32_t> ids{0, 36, 3, 3, 18, 15};
  const auto check = [&](const auto& matrix) {
    const auto table = test::packed(*backend, matrix);
    const auto values = test::decoded(matrix);
    const int64_t hidden = values.in_features, tokens = int64_t(ids.size());
    std::vector<float> y(size_t(tokens * hidden), 0.5f), expected, added;
    for (const int32_t id : ids)
      for (int64_t i = 0; i < hidden; ++i) {
        expected.push_back(values.values[size_t(id * hidden + i)]);
        added.push_back(0.5f + expected.back());
      }
    Embedding<decltype(table.view)> op{
        .ids = test::view_of(ids), .table = table.view, .y = test::view_of(y, {tokens, hidden})};
    op.accumulate = true;
    backend->run(op);
    EXPECT_TRUE(same_bits(y, added));
    op.accumulate = false;
    backend->run(op);
    EXPECT_TRUE(same_bits(y, expected));
  };
  Random random(12);
  for (const int bits : {2, 3, 4, 8}) {
    check(test::random_affine(random, bits, 37, 320, 64));
    check(test::random_outliers(random, bits, 3, 37, 272, 16));
  }
  check(test::random_affine(random, 3, 37, 36, 9));
  check(test::random_binary(random, 37, 300, 7));
  // In fragments, its values are rounded.
  auto binary = test::random_binary(random, 37, 300, 64);
  for (uint16_t& value : binary.coefficients) value = f32_to_f16(std::round(8 * f16_to_f32(value)) / 8);
  check(binary);
}

TEST(SimtLinearTraffic, WeightsAreReadOnceAndRowsOfXLieInDifferentBanks) {
  const auto backend = emulated_backend();
  Random random(11);
  const AffineMatrix matrix = test::random_affine(random, 4, 256, 2048, 128);
  const auto weight = test::packed(*backend, matrix);
  const int64_t weights = 256 * 2048;
  for (const int64_t tokens : {1, 128}) {
    const std::vector<float> x = random.floats(tokens * 2048);
    simt::take_counts();
    run(*backend, x, weight.view, {}, tokens);
    const simt::Counts counts = simt::take_counts();
    const int64_t tiles = (tokens + 7) / 8;
    EXPECT_EQ(counts.multiplies, weights / 256 * tiles);
    EXPECT_EQ(counts.matrix_loads, weights / 512 * tiles);
    EXPECT_EQ(counts.matrix_conflicts, 0);
    // Codes, scales and zero points once; for each of 2 · 8 stages x of all tokens, eight at least, and its sums.
    EXPECT_EQ(counts.copied_bytes, weights / 2 + weights / 128 * 3 + 16 * 8 * tiles * (256 * 2 + 2 * 4));
    EXPECT_EQ(counts.launches, 2);
  }
}

// Layers that share an input on the device round it once, until anything may have changed it.
TEST(SimtLinearTraffic, LayersThatShareAnInputRoundItOnce) {
  const auto backend = emulated_backend();
  Random random(12);
  const AffineMatrix matrix = test::random_affine(random, 4, 32, 256, 128);
  const auto weight = test::packed(*backend, matrix);
  std::vector<float> values = random.floats(256);
  const Tensor x = Tensor::from_floats(*backend, values, {1, 256}),
               wide = Tensor::from_floats(*backend, values, {1, 256}),
               y = Tensor::from_floats(*backend, std::vector<float>(32), {1, 32});
  const Linear<AffineView> op{.x = x.view(), .weight = weight.view, .y = y.view()};
  const auto launches = [&](const Linear<AffineView>& layer) {
    simt::take_counts();
    backend->run(layer);
    return simt::take_counts().launches;
  };
  EXPECT_EQ(launches(op), 2);
  EXPECT_EQ(launches(op), 1);
  const std::vector<float> before = y.to_floats();
  for (float& value : values) value = -value;
  backend->copy_to_device(x.view().as<void>(), values.data(), x.bytes());
  EXPECT_EQ(launches(op), 2);
  const std::vector<float> after = y.to_floats();
  for (size_t i = 0; i < after.size(); ++i) EXPECT_EQ(after[i], -before[i]);
  // A layer whose output lies in that input.
  const Linear<AffineView> over{
      .x = wide.view(),
      .weight = weight.view,
      .y = OutputView(x.view().as<float>() + 100, DType::f32, {1, 32}, Device::cuda)};
  EXPECT_EQ(launches(op), 1);
  EXPECT_EQ(launches(over), 2);
  EXPECT_EQ(launches(op), 2);
}

// The input is rounded to its grid on the device first: the layer of the values that the codes stand for.
TEST(SimtLinearWithGrid, ReadsWhatTheGridMakesOfItsInput) {
  Random random(12);
  const auto backend = emulated_backend();
  constexpr int64_t kOut = 48, kIn = 64;
  const AffineMatrix matrix = test::random_affine(random, 4, kOut, kIn, 32);
  const test::DenseMatrix dense(DType::f32, kOut, kIn, random.floats(kOut * kIn));
  const auto weight = test::packed(*backend, matrix);
  const auto dense_weight = test::packed(*backend, dense);
  const ActivationGrid grid{.bits = 4, .step = 0.21f, .zero_point = 6};
  for (const int64_t tokens : {1, 20}) {
    const std::vector<float> x = random.floats(tokens * kIn, -2, 3);
    std::vector<float> rounded;
    for (const float value : x) rounded.push_back(grid.round(value));
    ASSERT_NE(rounded, x);
    const auto with_grid = [&](const auto& view) {
      std::vector<float> y(size_t(tokens * kOut), std::numeric_limits<float>::quiet_NaN());
      backend->run(Linear{.x = test::view_of(x, {tokens, kIn}),
                          .weight = view,
                          .grid = grid,
                          .y = test::view_of(y, {tokens, kOut})});
      return y;
    };
    EXPECT_TRUE(within_bounds(with_grid(weight.view), reference(test::decoded(matrix), rounded, {}, tokens,
                                                                fragments_bound(matrix, "f32"))));
    EXPECT_TRUE(same_bits(with_grid(weight.view), run(*backend, rounded, weight.view, {}, tokens)));
    EXPECT_TRUE(
        same_bits(with_grid(dense_weight.view), run(*backend, rounded, dense_weight.view, {}, tokens)));
  }
}

}  // namespace
}  // namespace ballast
