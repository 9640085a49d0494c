#include "kernels/ops/second_moment.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::IsaTest;
using test::kRound32;
using test::kRound64;
using test::Random;
using test::same_bits;

constexpr int64_t kTokensInF32 = 1024;  // the contract's longest f32 sum

// Each f32 sum of at most 1024 tokens is off by that many roundings of Σ|a·b|; sums of those are f64.
void expect_moment(const std::vector<double>& out, const std::vector<double>& before,
                   const std::vector<float>& a, const std::vector<float>& b, int64_t tokens, int64_t rows,
                   int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const size_t at = size_t(i * columns + j);
      double value = before[at], magnitude = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const double product = double(a[size_t(t * rows + i)]) * b[size_t(t * columns + j)];
        value += product;
        magnitude += std::abs(product);
      }
      const double bound = double(std::min(tokens, kTokensInF32)) * kRound32 * magnitude +
                           double(tokens) * kRound64 * (magnitude + std::abs(before[at]));
      ASSERT_LE(std::abs(out[at] - value), bound) << "element " << i << ", " << j << " is " << out[at];
    }
}

std::vector<double> symmetric(Backend& backend, const std::vector<float>& a, int64_t tokens, int64_t rows,
                              std::vector<double> out) {
  const TensorView view = test::view_of(a, {tokens, rows});
  backend.run(SecondMoment{.a = view, .b = view, .out = out.data()});
  return out;
}

class SecondMomentOp : public IsaTest {};
BALLAST_FOR_ALL_ISAS(SecondMomentOp);

TEST_P(SecondMomentOp, SymmetricOfAnySize) {
  for (int64_t rows : {1, 2, 15, 16, 17, 33, 50, 129})
    for (int64_t tokens : {1, 7, 100}) {
      SCOPED_TRACE(str(rows, " features, ", tokens, " tokens"));
      Random random{uint64_t(rows * tokens)};
      const std::vector<float> a = random.floats(tokens * rows, -1, 2);
      std::vector<double> before(size_t(rows * rows));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < rows; ++j) before[size_t(i * rows + j)] = double(i + j);
      const std::vector<double> out = symmetric(*backend_, a, tokens, rows, before);
      ASSERT_NO_FATAL_FAILURE(expect_moment(out, before, a, a, tokens, rows, rows));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < i; ++j) ASSERT_EQ(out[size_t(i * rows + j)], out[size_t(j * rows + i)]);
      ASSERT_TRUE(same_bits(out, symmetric(*test::cpu_backend("scalar"), a, tokens, rows, before)));
      ASSERT_TRUE(same_bits(out, symmetric(*test::cpu_backend(GetParam(), 2), a, tokens, rows, before)));
    }
}

TEST_P(SecondMomentOp, ManyTokensAreSummedInParts) {
  constexpr int64_t kRows = 19;
  for (int64_t tokens : {1024, 1025, 2500}) {
    Random random{uint64_t(tokens)};
    const std::vector<float> a = random.floats(tokens * kRows, 0, 1);
    const std::vector<double> zero(kRows * kRows);
    const std::vector<double> out = symmetric(*backend_, a, tokens, kRows, zero);
    ASSERT_NO_FATAL_FAILURE(expect_moment(out, zero, a, a, tokens, kRows, kRows));
    // Equal to feeding the parts one call at a time.
    std::vector<double> parts = zero;
    for (int64_t first = 0; first < tokens; first += kTokensInF32) {
      const TensorView part =
          test::view_of(a, {tokens, kRows}).rows(first, std::min(kTokensInF32, tokens - first));
      backend_->run(SecondMoment{.a = part, .b = part, .out = parts.data()});
    }
    ASSERT_TRUE(same_bits(out, parts)) << tokens << " tokens";
  }
}

TEST_P(SecondMomentOp, CrossOfDifferentWidths) {
  const Shape shapes[] = {{1, 1, 1}, {9, 40, 17}, {1030, 5, 33}, {64, 16, 16}, {50, 70, 3}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(str("tokens, rows, columns ", shape.text()));
    Random random{uint64_t(shape.elements())};
    const int64_t tokens = shape[0], rows = shape[1], columns = shape[2];
    const std::vector<float> a = random.floats(tokens * rows), b = random.floats(tokens * columns);
    const std::vector<double> before(size_t(rows * columns), 3.0);
    const auto cross = [&](Backend& backend) {
      std::vector<double> out = before;
      backend.run(SecondMoment{.a = test::view_of(a, {tokens, rows}),
                               .b = test::view_of(b, {tokens, columns}),
                               .out = out.data()});
      return out;
    };
    const std::vector<double> out = cross(*backend_);
    ASSERT_NO_FATAL_FAILURE(expect_moment(out, before, a, b, tokens, rows, columns));
    ASSERT_TRUE(same_bits(out, cross(*test::cpu_backend("scalar"))));
    ASSERT_TRUE(same_bits(out, cross(*test::cpu_backend(GetParam(), 2))));
  }
}

// Parts of 1024 tokens are the same f32 sums; adding each of them to f32 rounds once more.
TEST_P(SecondMomentOp, IntoF32) {
  constexpr int64_t kTokens = 2500, kRows = 37, kColumns = 50;
  Random random{5};
  const std::vector<float> a = random.floats(kTokens * kRows), b = random.floats(kTokens * kColumns);
  const TensorView x = test::view_of(a, {kTokens, kRows}), y = test::view_of(b, {kTokens, kColumns});
  std::vector<float> out(size_t(kRows * kColumns), 3.0f), expected = out;
  backend_->run(SecondMoment{.a = x, .b = y, .out_f32 = out.data()});
  for (int64_t first = 0; first < kTokens; first += kTokensInF32) {
    const int64_t tokens = std::min(kTokensInF32, kTokens - first);
    std::vector<double> part(out.size());
    backend_->run(SecondMoment{.a = x.rows(first, tokens), .b = y.rows(first, tokens), .out = part.data()});
    for (size_t i = 0; i < part.size(); ++i) expected[i] += float(part[i]);
  }
  EXPECT_EQ(out, expected);
}

TEST_P(SecondMomentOp, RowsOfTheInputsMayLieApart) {
  constexpr int64_t kTokens = 40, kRows = 21, kStride = 32;
  Random random(4);
  const std::vector<float> wide = random.floats(kTokens * kStride);
  std::vector<float> a;
  for (int64_t t = 0; t < kTokens; ++t)
    a.insert(a.end(), wide.begin() + t * kStride, wide.begin() + t * kStride + kRows);
  TensorView view(wide.data(), DType::f32, {kTokens, kRows});
  view.strides[0] = kStride;
  std::vector<double> out(kRows * kRows);
  backend_->run(SecondMoment{.a = view, .b = view, .out = out.data()});
  EXPECT_TRUE(same_bits(out, symmetric(*backend_, a, kTokens, kRows, std::vector<double>(kRows * kRows))));
}

}  // namespace
}  // namespace ballast
