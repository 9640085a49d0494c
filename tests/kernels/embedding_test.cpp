#include "kernels/ops/embedding.h"

#include <gtest/gtest.h>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::IsaTest;
using test::Random;
using test::same_bits;
using test::view_of;

class EmbeddingOp : public IsaTest {};
BALLAST_FOR_ALL_ISAS(EmbeddingOp);

template <class Matrix>
void check_rows(Backend& backend, const Matrix& matrix, const test::DenseMatrix& values) {
  const auto table = test::packed(backend, matrix);
  const int64_t hidden = values.in_features, last = values.out_features - 1;
  const std::vector<int32_t> ids{0, int32_t(last), 3, 3, int32_t(last / 2), 15};
  const int64_t tokens = int64_t(ids.size());
  std::vector<float> y(size_t(tokens * hidden), 0.5f), expected, accumulated;
  for (int32_t id : ids)
    for (int64_t i = 0; i < hidden; ++i) {
      expected.push_back(values.values[size_t(id * hidden + i)]);
      accumulated.push_back(0.5f + expected.back());
    }
  using Table = decltype(table.view);
  Embedding<Table> op{.ids = view_of(ids), .table = table.view, .y = view_of(y, {tokens, hidden})};
  op.accumulate = true;
  backend.run(op);
  EXPECT_TRUE(same_bits(y, accumulated)) << "accumulating";
  op.accumulate = false;
  backend.run(op);
  EXPECT_TRUE(same_bits(y, expected));
}

TEST_P(EmbeddingOp, DenseRowsAreExact) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (int64_t hidden : {1, 17, 128, 300}) {
      SCOPED_TRACE(str(name_of(dtype), ", hidden ", hidden));
      Random random{uint64_t(hidden)};
      const test::DenseMatrix matrix(dtype, 37, hidden, random.floats(37 * hidden));
      check_rows(*backend_, matrix, matrix);
    }
}

TEST_P(EmbeddingOp, AffineRowsAreExact) {
  for (int bits : {2, 3, 4, 8})
    for (int64_t group_size : {16, 64, 320}) {
      SCOPED_TRACE(str(bits, " bits, group ", group_size));
      Random random{uint64_t(bits * group_size)};
      const AffineMatrix matrix = test::random_affine(random, bits, 37, 320, group_size);
      check_rows(*backend_, matrix, test::decoded(matrix));
    }
}

TEST_P(EmbeddingOp, RowsWithOutliersAreExact) {
  for (int bits : {2, 3, 4, 8})
    for (int64_t group_size : {16, 64, 320}) {
      SCOPED_TRACE(str(bits, " bits, group ", group_size));
      Random random{uint64_t(bits * group_size)};
      const auto matrix = test::random_outliers(random, bits, 3, 37, 320, group_size);
      check_rows(*backend_, matrix, test::decoded(matrix));
    }
}

TEST_P(EmbeddingOp, ResidualBinaryRowsAreExact) {
  for (int64_t block_size : {16, 128, 320}) {
    SCOPED_TRACE(str("blocks of ", block_size));
    Random random{uint64_t(block_size)};
    auto matrix = test::random_binary(random, 37, 320, block_size);
    // Here the order of the additions shows: (2^-24 + 65504) - 65504 is 0 in f32.
    matrix.coefficients[0] = 0x0001;
    matrix.coefficients[1] = matrix.coefficients[2] = 0x7BFF;
    check_rows(*backend_, matrix, test::decoded(matrix));
  }
}

TEST_P(EmbeddingOp, RowsOfTheOutputMayLieApart) {
  Random random(5);
  const test::DenseMatrix matrix(DType::f32, 20, 6, random.floats(120));
  const auto table = test::packed(*backend_, matrix);
  const std::vector<int32_t> ids{7, 19};
  std::vector<float> y(20, -1);
  Embedding<DenseView> op{
      .ids = view_of(ids), .table = table.view, .y = OutputView(y.data(), DType::f32, {2, 6})};
  op.y.strides[0] = 10;
  backend_->run(op);
  for (int64_t t = 0; t < 2; ++t)
    for (int64_t i = 0; i < 10; ++i)
      EXPECT_EQ(y[size_t(t * 10 + i)], i < 6 ? matrix.values[size_t(ids[size_t(t)] * 6 + i)] : -1);
}

TEST_P(EmbeddingOp, RefusesIdsOutsideTheTable) {
  Random random(6);
  const test::DenseMatrix matrix(DType::f32, 20, 6, random.floats(120));
  const auto table = test::packed(*backend_, matrix);
  std::vector<float> y(12);
  for (int32_t bad : {-1, 20}) {
    const std::vector<int32_t> ids{3, bad};
    const Embedding<DenseView> op{.ids = view_of(ids), .table = table.view, .y = view_of(y, {2, 6})};
    const std::string message = test::message_of<ContractError>([&] { backend_->run(op); });
    EXPECT_NE(message.find(str("embedding: id ", bad, " outside a table of 20")), std::string::npos)
        << message;
  }
}

}  // namespace
}  // namespace ballast
