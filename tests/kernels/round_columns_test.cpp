#include "kernels/ops/round_columns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::IsaTest;
using test::Random;
using test::same_bits;

struct Case {
  int64_t rows, width, groups;
  int max_code;
  std::vector<float> w, u, scales, zeros;
  std::vector<int32_t> group_of;
  std::vector<uint8_t> codes;
};

Case random_case(int64_t rows, int64_t width, int64_t groups, int bits) {
  Random random{uint64_t(rows * 1000 + width * 10 + bits)};
  Case c{rows, width, groups, (1 << bits) - 1, random.floats(rows * width), {}, {}, {}, {}, {}};
  c.u = random.floats(width * width, -0.2f, 0.2f);
  for (int64_t i = 0; i < width; ++i) c.u[size_t(i * width + i)] = random.uniform(0.5f, 1.5f);
  c.scales = random.floats(groups * rows, 0.05f, 0.4f);
  for (int64_t i = 0; i < groups * rows; ++i)
    c.zeros.push_back(0.5f * float(random.below(2 * c.max_code + 1)));
  for (int64_t i = 0; i < width; ++i) c.group_of.push_back(int32_t(random.below(groups)));
  c.codes.resize(c.w.size());
  return c;
}

// By the equations, one weight after the other.
void naive(Case& c) {
  for (int64_t row = 0; row < c.rows; ++row) {
    float* w = c.w.data() + row * c.width;
    for (int64_t i = 0; i < c.width; ++i) {
      const size_t at = size_t(c.group_of[size_t(i)] * c.rows + row);
      const float scale = c.scales[at], zero = c.zeros[at], *u = c.u.data() + i * c.width;
      const float half = zero - std::floor(zero);
      const float code =
          std::clamp(std::nearbyint(w[i] / scale + half) + zero - half, 0.0f, float(c.max_code));
      c.codes[size_t(row * c.width + i)] = uint8_t(code);
      w[i] = (w[i] - scale * (code - zero)) / u[i];
      for (int64_t j = i + 1; j < c.width; ++j) w[j] = std::fma(-w[i], u[j], w[j]);
    }
  }
}

void run(Backend& backend, Case& c) {
  backend.run(RoundColumns{.w = OutputView(c.w.data(), DType::f32, {c.rows, c.width}),
                           .u = test::view_of(c.u, {c.width, c.width}),
                           .scales = test::view_of(c.scales, {c.groups, c.rows}),
                           .zeros = test::view_of(c.zeros, {c.groups, c.rows}),
                           .groups = TensorView(c.group_of.data(), DType::i32, {c.width}),
                           .codes = OutputView(c.codes.data(), DType::u8, {c.rows, c.width}),
                           .max_code = c.max_code});
}

class RoundColumnsOp : public IsaTest {};
BALLAST_FOR_ALL_ISAS(RoundColumnsOp);

TEST_P(RoundColumnsOp, GivesTheBitsOfTheEquations) {
  for (const int bits : {2, 3, 4, 8})
    for (const int64_t rows : {1, 15, 16, 40})
      for (const int64_t width : {1, 7, 128}) {
        SCOPED_TRACE(str(bits, " bits, ", rows, "x", width));
        const Case start = random_case(rows, width, 3, bits);
        Case expected = start, one = start, two = start;
        naive(expected);
        run(*backend_, one);
        run(*test::cpu_backend(GetParam(), 2), two);
        ASSERT_TRUE(same_bits(one.w, expected.w));
        ASSERT_EQ(one.codes, expected.codes);
        ASSERT_TRUE(same_bits(two.w, expected.w)) << "two threads";
        ASSERT_EQ(two.codes, expected.codes);
      }
}

TEST_P(RoundColumnsOp, ViewsMayBePartsOfWiderMatrices) {
  constexpr int64_t kRows = 20, kWidth = 9, kStride = 30;
  const Case start = random_case(kRows, kWidth, 2, 4);
  Case expected = start;
  naive(expected);
  std::vector<float> wide(kRows * kStride, -7);
  std::vector<uint8_t> codes(kRows * kStride, 77);
  for (int64_t row = 0; row < kRows; ++row)
    std::copy_n(start.w.begin() + row * kWidth, kWidth, wide.begin() + row * kStride + 4);
  RoundColumns op{.w = OutputView(wide.data() + 4, DType::f32, {kRows, kWidth}),
                  .u = test::view_of(start.u, {kWidth, kWidth}),
                  .scales = test::view_of(start.scales, {2, kRows}),
                  .zeros = test::view_of(start.zeros, {2, kRows}),
                  .groups = TensorView(start.group_of.data(), DType::i32, {kWidth}),
                  .codes = OutputView(codes.data() + 4, DType::u8, {kRows, kWidth}),
                  .max_code = start.max_code};
  op.w.strides[0] = op.codes.strides[0] = kStride;
  backend_->run(op);
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t i = 0; i < kStride; ++i) {
      const bool inside = i >= 4 && i < 4 + kWidth;
      const size_t at = size_t(row * kStride + i), from = size_t(row * kWidth + i - 4);
      ASSERT_EQ(wide[at], inside ? expected.w[from] : -7);
      ASSERT_EQ(codes[at], inside ? expected.codes[from] : 77);
    }
}

}  // namespace
}  // namespace ballast
