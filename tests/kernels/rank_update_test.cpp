#include "kernels/ops/rank_update.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::Expected;
using test::IsaTest;
using test::kRound32;
using test::Random;
using test::same_bits;

struct Case {
  int64_t rows = 0, rank = 0, columns = 0;
  std::vector<float> e, u, w;
};

Case random_case(int64_t rows, int64_t rank, int64_t columns) {
  Random random{uint64_t(rows * 1000 + rank * 31 + columns)};
  return {rows,
          rank,
          columns,
          random.floats(rows * rank),
          random.floats(rank * columns),
          random.floats(rows * columns)};
}

std::vector<Expected> reference(const Case& c) {
  std::vector<Expected> out;
  for (int64_t i = 0; i < c.rows; ++i)
    for (int64_t j = 0; j < c.columns; ++j) {
      double value = c.w[size_t(i * c.columns + j)], magnitude = std::abs(value);
      for (int64_t r = 0; r < c.rank; ++r) {
        const double product = double(c.e[size_t(i * c.rank + r)]) * c.u[size_t(r * c.columns + j)];
        value -= product;
        magnitude += std::abs(product);
      }
      out.push_back({value, double(c.rank + 1) * kRound32 * magnitude});
    }
  return out;
}

std::vector<float> run(Backend& backend, const Case& c) {
  std::vector<float> w = c.w;
  backend.run(RankUpdate{.e = test::view_of(c.e, {c.rows, c.rank}),
                         .u = test::view_of(c.u, {c.rank, c.columns}),
                         .w = test::view_of(w, {c.rows, c.columns})});
  return w;
}

class RankUpdateOp : public IsaTest {};
BALLAST_FOR_ALL_ISAS(RankUpdateOp);

TEST_P(RankUpdateOp, MatchesF64AndTheScalarBits) {
  const Shape shapes[] = {{1, 1, 1}, {3, 128, 16}, {7, 5, 33}, {200, 130, 70}, {1, 40, 200}, {33, 64, 100}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(shape.text());
    const Case c = random_case(shape[0], shape[1], shape[2]);
    const std::vector<float> w = run(*backend_, c);
    ASSERT_TRUE(within_bounds(w, reference(c)));
    ASSERT_TRUE(same_bits(w, run(*test::cpu_backend("scalar"), c)));
    ASSERT_TRUE(same_bits(w, run(*test::cpu_backend(GetParam(), 2), c)));
  }
}

// The column solver updates the columns right of a block, out of a wider matrix.
TEST_P(RankUpdateOp, ViewsMayBePartsOfWiderMatrices) {
  const Case c = random_case(9, 20, 30);
  const std::vector<float> expected = run(*backend_, c);
  constexpr int64_t kStride = 64;
  std::vector<float> e(9 * kStride, -1), u(20 * kStride, -2), w(9 * kStride, -3);
  for (int64_t i = 0; i < 9; ++i) std::copy_n(c.e.begin() + i * 20, 20, e.begin() + i * kStride);
  for (int64_t r = 0; r < 20; ++r) std::copy_n(c.u.begin() + r * 30, 30, u.begin() + r * kStride);
  for (int64_t i = 0; i < 9; ++i) std::copy_n(c.w.begin() + i * 30, 30, w.begin() + i * kStride + 5);
  RankUpdate op{.e = TensorView(e.data(), DType::f32, {9, 20}),
                .u = TensorView(u.data(), DType::f32, {20, 30}),
                .w = OutputView(w.data() + 5, DType::f32, {9, 30})};
  op.e.strides[0] = op.u.strides[0] = op.w.strides[0] = kStride;
  backend_->run(op);
  for (int64_t i = 0; i < 9; ++i)
    for (int64_t j = 0; j < kStride; ++j) {
      const bool inside = j >= 5 && j < 35;
      ASSERT_EQ(w[size_t(i * kStride + j)], inside ? expected[size_t(i * 30 + j - 5)] : -3) << i << ", " << j;
    }
}

TEST_P(RankUpdateOp, RankZeroChangesNothing) {
  const Case c = random_case(3, 0, 4);
  EXPECT_TRUE(same_bits(run(*backend_, c), c.w));
}

}  // namespace
}  // namespace ballast
