#include "kernels/ops/linear.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/linear_ops.h"

namespace ballast {
namespace {

using test::check_matrix;
using test::DenseMatrix;
using test::Extras;
using test::IsaTest;
using test::op_for;
using test::Random;
using test::random_extras;
using test::reference;
using test::run;
using test::same_bits;
using test::view_of;

class LinearOp : public IsaTest {};
BALLAST_FOR_ALL_ISAS(LinearOp);

TEST_P(LinearOp, DenseWeightsOfAnyShape) {
  const Shape shapes[] = {{1, 1}, {1, 300}, {15, 16}, {16, 128}, {17, 129}, {33, 5}, {80, 127}, {150, 260}};
  uint64_t seed = 1;
  for (DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(str(name_of(dtype), " ", shape.text()));
      Random random(++seed);
      const DenseMatrix matrix(dtype, shape[0], shape[1], random.floats(shape.elements()));
      ASSERT_NO_FATAL_FAILURE(check_matrix(GetParam(), matrix, matrix, seed));
    }
}

// {out_features, in_features, block_size}
TEST_P(LinearOp, ResidualBinaryOfAnyShapeAndBlock) {
  const Shape shapes[] = {{1, 16, 16},     {150, 192, 128}, {33, 96, 128}, {17, 768, 128}, {70, 384, 100},
                          {31, 37, 65536}, {130, 131, 128}, {16, 300, 7},  {40, 20, 1}};
  uint64_t seed = 300;
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(str("out, in, block ", shape.text()));
    Random random(++seed);
    const auto matrix = test::random_binary(random, shape[0], shape[1], shape[2]);
    ASSERT_NO_FATAL_FAILURE(check_matrix(GetParam(), matrix, test::decoded(matrix), seed));
  }
}

// Packed weights give the bits of the matrix that the canonical form decodes to.
template <class Matrix>
void expect_equals_decoded(Backend& backend, const Matrix& matrix, Random& random) {
  const auto weight = test::packed(backend, matrix);
  const auto dense_weight = test::packed(backend, test::decoded(matrix));
  const std::vector<float> x = random.floats(13 * matrix.in_features);
  for (int64_t tokens : {1, 2, 13})
    ASSERT_TRUE(
        same_bits(run(backend, x, weight.view, {}, tokens), run(backend, x, dense_weight.view, {}, tokens)))
        << tokens << " tokens";
}

TEST_P(LinearOp, ResidualBinaryEqualsItsDecodedMatrixBitForBit) {
  uint64_t seed = 500;
  for (const Shape& shape : {Shape{83, 336, 128}, {64, 192, 128}, {15, 768, 100}, {16, 129, 128}}) {
    SCOPED_TRACE(shape.text());
    Random random(++seed);
    auto matrix = test::random_binary(random, shape[0], shape[1], shape[2]);
    for (size_t i = 0; i < 7; ++i) matrix.coefficients[i] = i % 2 ? 0x7BFF : 0x8001;
    ASSERT_NO_FATAL_FAILURE(expect_equals_decoded(*backend_, matrix, random));
  }
}

TEST_P(LinearOp, EveryCombinationOfExtras) {
  constexpr int64_t kTokens = 9, kOut = 37, kIn = 50;
  Random random(7);
  const DenseMatrix matrix(DType::f32, kOut, kIn, random.floats(kOut * kIn));
  const auto weight = test::packed(*backend_, matrix);
  const std::vector<float> x = random.floats(kTokens * kIn);
  for (Activation activation : {Activation::none, Activation::relu, Activation::gelu})
    for (int parts = 0; parts < 8; ++parts) {
      Extras extras = random_extras(random, kTokens, kOut, activation);
      if (!(parts & 1)) extras.bias.clear();
      if (!(parts & 2)) extras.position_bias.clear();
      if (!(parts & 4)) extras.residual.clear();
      ASSERT_TRUE(within_bounds(run(*backend_, x, weight.view, extras, kTokens),
                                reference(matrix, x, extras, kTokens)))
          << "activation " << int(activation) << ", parts " << parts;
    }
}

TEST_P(LinearOp, PositionsBeyondTheTableGetNothingAdded) {
  Random random(8);
  const DenseMatrix matrix(DType::f32, 20, 12, random.floats(240));
  const auto weight = test::packed(*backend_, matrix);
  const std::vector<float> x = random.floats(3 * 12);
  Extras extras{.position_bias = random.floats(2 * 20), .positions = {2, 1, 1000000}, .position_rows = 2};
  const std::vector<float> with = run(*backend_, x, weight.view, extras, 3);
  const std::vector<float> without = run(*backend_, x, weight.view, {}, 3);
  for (int64_t row = 0; row < 20; ++row) {
    EXPECT_EQ(with[size_t(row)], without[size_t(row)]);
    EXPECT_EQ(with[size_t(20 + row)], without[size_t(20 + row)] + extras.position_bias[size_t(20 + row)]);
    EXPECT_EQ(with[size_t(40 + row)], without[size_t(40 + row)]);
  }
}

TEST_P(LinearOp, ResidualMayBeTheOutputItself) {
  constexpr int64_t kOut = 150, kIn = 300;
  Random random(9);
  const DenseMatrix matrix(DType::f32, kOut, kIn, random.floats(kOut * kIn));
  const auto backend = test::cpu_backend(GetParam(), 2);
  const auto weight = test::packed(*backend, matrix);
  for (int64_t tokens : {1, 2, 200}) {
    const std::vector<float> x = random.floats(tokens * kIn);
    const Extras extras{.residual = random.floats(tokens * kOut), .activation = Activation::relu};
    const std::vector<float> expected = run(*backend, x, weight.view, extras, tokens);
    std::vector<float> y = extras.residual;
    auto op = op_for(x, weight.view, extras, tokens, y);
    op.residual = op.y;
    backend->run(op);
    ASSERT_TRUE(same_bits(y, expected)) << tokens << " tokens";
  }
}

TEST_P(LinearOp, RowsOfViewsMayLieApart) {
  constexpr int64_t kTokens = 14, kOut = 37, kIn = 50;
  Random random(10);
  const DenseMatrix matrix(DType::f16, kOut, kIn, random.floats(kOut * kIn));
  const auto weight = test::packed(*backend_, matrix);
  const std::vector<float> x = random.floats(kTokens * kIn);
  const Extras extras{.residual = random.floats(kTokens * kOut)};
  const std::vector<float> expected = run(*backend_, x, weight.view, extras, kTokens);
  constexpr int64_t kXStride = 64, kYStride = 41, kResidualStride = 77;
  std::vector<float> wide_x(kTokens * kXStride, -5), wide_residual(kTokens * kResidualStride, -6);
  std::vector<float> wide_y(kTokens * kYStride, -7);
  for (int64_t t = 0; t < kTokens; ++t) {
    std::copy_n(x.begin() + t * kIn, kIn, wide_x.begin() + t * kXStride);
    std::copy_n(extras.residual.begin() + t * kOut, kOut, wide_residual.begin() + t * kResidualStride);
  }
  for (int64_t tokens : {int64_t(1), kTokens}) {
    auto op = op_for(wide_x, weight.view, {}, tokens, wide_y);
    op.residual = TensorView(wide_residual.data(), DType::f32, {tokens, kOut});
    op.x.strides[0] = kXStride;
    op.residual.strides[0] = kResidualStride;
    op.y.strides[0] = kYStride;
    backend_->run(op);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t row = 0; row < kYStride; ++row)
        ASSERT_EQ(wide_y[size_t(t * kYStride + row)], row < kOut ? expected[size_t(t * kOut + row)] : -7);
  }
}

TEST_P(LinearOp, NoTokensIsNoWork) {
  Random random(11);
  const DenseMatrix matrix(DType::f32, 5, 6, random.floats(30));
  const auto weight = test::packed(*backend_, matrix);
  std::vector<float> x(6), y{42};
  EXPECT_NO_THROW(backend_->run(op_for(x, weight.view, {}, 0, y)));
  EXPECT_EQ(y[0], 42);
}

// A stored matrix comes straight out of a file map, at any address.
TEST_P(LinearOp, PackReadsUnalignedSources) {
  Random random(12);
  const DenseMatrix matrix(DType::f32, 18, 7, random.floats(126));
  std::vector<char> bytes(126 * 4 + 1);
  std::memcpy(bytes.data() + 1, matrix.values.data(), 126 * 4);
  const test::Packed<DenseView> shifted(*backend_, TensorView(bytes.data() + 1, DType::f32, {18, 7}),
                                        DenseView{DType::f32, 18, 7, {}});
  const auto weight = test::packed(*backend_, matrix);
  const std::vector<float> x = random.floats(7);
  EXPECT_TRUE(same_bits(run(*backend_, x, shifted.view, {}, 1), run(*backend_, x, weight.view, {}, 1)));
}

TEST_P(LinearOp, BrokenContractsAreNamed) {
  Random random(13);
  const DenseMatrix matrix(DType::f32, 20, 12, random.floats(240));
  const auto weight = test::packed(*backend_, matrix);
  std::vector<float> x(24), y(40), bias(19);
  const auto message = [&](const std::function<void(Linear<DenseView>&)>& damage) {
    auto op = op_for(x, weight.view, {}, 2, y);
    damage(op);
    return test::message_of<ContractError>([&] { backend_->run(op); });
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(
      has(message([&](auto& op) { op.bias = view_of(bias, {19}); }), "linear: out_features is 19 in bias"));
  EXPECT_TRUE(has(message([&](auto& op) { op.x.shape.dims[1] = 11; }), "linear: in_features is 11 in x"));
  EXPECT_TRUE(has(message([&](auto& op) { op.y.shape.dims[0] = 1; }), "linear: tokens is 1 in y"));
  EXPECT_TRUE(has(message([&](auto& op) { op.x.dtype = DType::f16; }), "linear: x has dtype f16"));
  EXPECT_TRUE(has(message([&](auto& op) { op.weight.data = {}; }), "linear: weight was not packed"));
  EXPECT_TRUE(has(message([&](auto& op) { op.x.data = op.y.data; }), "linear: y must not overwrite x"));
  EXPECT_TRUE(has(message([&](auto& op) {
                    op.position_bias = TensorView(y.data(), DType::f32, {1, 20});
                  }),
                  "linear: positions has shape"));
}

TEST(FindBackend, DescribesItselfAndRefusesWhatIsNotThere) {
  EXPECT_EQ(test::cpu_backend("scalar", 3)->description(), "cpu, scalar, 3 threads");
  EXPECT_EQ(test::cpu_backend("scalar", 1)->description(), "cpu, scalar, 1 thread");
  const auto message = [](const BackendOptions& options) {
    return test::message_of<Error>([&] { find_backend(options); });
  };
  EXPECT_EQ(message({.device = "tpu"}), "--device is \"tpu\", expected auto, cpu or cuda");
  EXPECT_EQ(message({.device = "cpu", .isa = "mmx"}),
            "instruction set is \"mmx\", expected auto, scalar, avx2 or avx512");
  EXPECT_EQ(message({.device = "cpu", .threads = -1}),
            "--threads is -1, expected 1 to 1024, or 0 for all processors");
  EXPECT_EQ(test::cpu_backend("scalar", 1, "int8")->description(), "cpu, scalar, 1 thread, int8 activations");
  EXPECT_EQ(message({.device = "cpu", .activations = "int4"}),
            "--activations is \"int4\", expected f32 or int8");
  for (const char* isa : {"avx2", "avx512"})
    if (!test::isa_runs_here(isa)) {
      EXPECT_EQ(message({.device = "cpu", .isa = isa}),
                str("instruction set ", isa, " is not supported by this processor"));
    }
}

}  // namespace
}  // namespace ballast
