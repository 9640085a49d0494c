// What quantizing takes, on the emulator, against the CPU backend or f64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/core/tensor.h"
#include "tests/support/backends.h"
#include "tests/support/reference.h"
#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

using test::emulated_backend;
using test::kRound32;
using test::kRound64;
using test::Random;
using test::same_bits;

// Sums of at most 1024 tokens in f32, then f64.
TEST(SimtSecondMoment, AddsWhatTheTokensGive) {
  struct Case {
    int64_t tokens, rows, columns;
  };
  const auto backend = emulated_backend();
  for (const auto& [tokens, rows, columns] : {Case{1, 1, 1}, {7, 70, 5}, {33, 65, 130}, {1100, 4, 3}}) {
    SCOPED_TRACE(str(tokens, " tokens, ", rows, "x", columns));
    Random random{uint64_t(tokens + rows)};
    const std::vector<float> a = random.floats(tokens * rows, -1, 2), b = random.floats(tokens * columns);
    std::vector<double> out(size_t(rows * columns), 3);
    std::vector<float> out_f32(out.size(), 3);
    const TensorView of_a = test::view_of(a, {tokens, rows}), of_b = test::view_of(b, {tokens, columns});
    backend->run(SecondMoment{.a = of_a, .b = of_b, .out = out.data()});
    backend->run(SecondMoment{.a = of_a, .b = of_b, .out_f32 = out_f32.data()});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const size_t at = size_t(i * columns + j);
        double value = 3, magnitude = 3;
        for (int64_t t = 0; t < tokens; ++t) {
          const double product = double(a[size_t(t * rows + i)]) * b[size_t(t * columns + j)];
          value += product;
          magnitude += std::abs(product);
        }
        const double bound = double(std::min<int64_t>(tokens, 1024)) * kRound32 * magnitude;
        ASSERT_NEAR(out[at], value, bound) << i << ", " << j;
        ASSERT_NEAR(out_f32[at], value, bound + 2 * kRound32 * magnitude) << i << ", " << j;
      }
  }
}

TEST(SimtSecondMoment, OfOneInputIsSymmetric) {
  const auto backend = emulated_backend();
  constexpr int64_t kRows = 67;
  Random random{5};
  const std::vector<float> a = random.floats(20 * kRows);
  const TensorView view = test::view_of(a, {20, kRows});
  std::vector<double> out(kRows * kRows);
  backend->run(SecondMoment{.a = view, .b = view, .out = out.data()});
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < i; ++j) ASSERT_EQ(out[size_t(i * kRows + j)], out[size_t(j * kRows + i)]);
}

// Sums that stay on the device between calls.
TEST(SimtSecondMoment, GrowsOnTheDevice) {
  const auto backend = emulated_backend();
  constexpr int64_t kTokens = 9, kRows = 5, kColumns = 70;
  Random random{9};
  const std::vector<float> a = random.floats(2 * kTokens * kRows), b = random.floats(2 * kTokens * kColumns);
  std::vector<double> expected(kRows * kColumns);
  std::vector<float> expected_f32(expected.size());
  const std::vector<double> zeros(expected.size());
  const Tensor there = Tensor(*backend, DType::u8, {8 * kRows * kColumns});
  const Tensor there_f32 = Tensor::from_floats(*backend, expected_f32, {kRows, kColumns});
  backend->copy_to_device(there.view().as<void>(), zeros.data(), there.bytes());
  for (const int64_t first : {int64_t(0), kTokens}) {
    const auto part = [&](const std::vector<float>& of, int64_t width) {
      return TensorView(of.data() + first * width, DType::f32, {kTokens, width});
    };
    SecondMoment op{.a = part(a, kRows), .b = part(b, kColumns), .out = expected.data()};
    backend->run(op);
    op.out = there.view().as<double>(), op.out_device = Device::cuda;
    backend->run(op);
    SecondMoment op_f32{.a = op.a, .b = op.b, .out_f32 = expected_f32.data()};
    backend->run(op_f32);
    op_f32.out_f32 = there_f32.view().as<float>(), op_f32.out_device = Device::cuda;
    backend->run(op_f32);
  }
  std::vector<double> found(expected.size());
  backend->copy_to_host(found.data(), there.view().data, there.bytes());
  EXPECT_EQ(found, expected);
  EXPECT_EQ(there_f32.to_floats(), expected_f32);
}

TEST(SimtColumnSums, GiveTheBitsOfTheCpu) {
  const auto backend = emulated_backend(), cpu = find_backend({.device = "cpu", .threads = 1});
  constexpr int64_t kTokens = 11;
  for (const int64_t width : {1, 64, 150})
    for (const int64_t count : {0, 3}) {
      Random random{uint64_t(width + count)};
      std::vector<float> x = random.floats(kTokens * width);
      for (size_t i = 0; i < x.size(); i += 5) x[i] = i % 2 == 0 ? 0.0f : -0.0f;
      std::vector<int32_t> positions;
      for (int64_t t = 0; t < kTokens; ++t) positions.push_back(int32_t(t % 5));
      struct Sums {
        std::vector<double> all, by_position;
        int64_t zeros = 7;
        bool operator==(const Sums&) const = default;
      };
      Sums found[2];
      for (int on = 0; on < 2; ++on) {
        Sums& sums = found[on];
        sums.all.assign(size_t(width), 0.5), sums.by_position.assign(size_t(count * width), 0.25);
        for (int again = 0; again < 2; ++again)
          (on ? *backend : *cpu)
              .run(ColumnSums{.x = test::view_of(x, {kTokens, width}),
                              .positions = test::view_of(positions),
                              .sums = sums.all.data(),
                              .position_sums = sums.by_position.data(),
                              .position_count = count,
                              .zeros = &sums.zeros});
      }
      EXPECT_TRUE(found[1] == found[0]) << width << ", " << count;
      EXPECT_GT(found[0].zeros, 7);
    }
}

TEST(SimtSubtract, GivesTheBitsOfTheCpu) {
  const auto backend = emulated_backend(), cpu = find_backend({.device = "cpu", .threads = 1});
  constexpr int64_t kTokens = 3, kWidth = 300;
  Random random{10};
  const std::vector<float> a = random.floats(kTokens * kWidth), b = random.floats(kTokens * kWidth);
  std::vector<float> on_cpu(a.size()), in_place = b;
  cpu->run(Subtract{.a = test::view_of(a, {kTokens, kWidth}),
                    .b = test::view_of(b, {kTokens, kWidth}),
                    .y = test::view_of(on_cpu, {kTokens, kWidth})});
  const OutputView y = test::view_of(in_place, {kTokens, kWidth});
  backend->run(Subtract{.a = test::view_of(a, {kTokens, kWidth}), .b = y, .y = y});
  EXPECT_TRUE(same_bits(in_place, on_cpu));
}

TEST(SimtRankUpdate, SubtractsOrAddsAProduct) {
  const auto backend = emulated_backend();
  constexpr int64_t kRows = 70, kRank = 37, kColumns = 66, kStride = 80;
  Random random{6};
  const std::vector<float> e = random.floats(kRows * kRank), u = random.floats(kRank * kColumns);
  const std::vector<float> before = random.floats(kRows * kStride);
  for (const bool add : {false, true}) {
    std::vector<float> w = before;
    RankUpdate op{.e = test::view_of(e, {kRows, kRank}),
                  .u = test::view_of(u, {kRank, kColumns}),
                  .w = OutputView(w.data() + 3, DType::f32, {kRows, kColumns}),
                  .add = add};
    op.w.strides[0] = kStride;
    backend->run(op);
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t j = 0; j < kStride; ++j) {
        const size_t at = size_t(i * kStride + j);
        double value = before[at], magnitude = std::abs(value);
        if (j >= 3 && j < 3 + kColumns)
          for (int64_t k = 0; k < kRank; ++k) {
            const double product = double(e[size_t(i * kRank + k)]) * u[size_t(k * kColumns + j - 3)];
            value += add ? product : -product;
            magnitude += std::abs(product);
          }
        ASSERT_NEAR(w[at], value, (kRank + 2) * kRound32 * magnitude) << i << ", " << j;
      }
  }
}

// U upper triangular and U·H·Uᵀ = 1.
TEST(SimtFactorize, GivesTheFactorOfTheInverse) {
  const auto backend = emulated_backend();
  for (const int64_t n : {1, 2, 63, 64, 65, 150}) {
    SCOPED_TRACE(str("size ", n));
    Random random{uint64_t(n)};
    const std::vector<float> a = random.floats(12 * n);
    std::vector<double> h(size_t(n * n));
    double largest = 0;
    for (int64_t i = 0; i < n; ++i) {
      double size = 0;
      for (int64_t j = 0; j < n; ++j) {
        double sum = i == j ? 0.05 : 0;
        for (int64_t s = 0; s < 12; ++s) sum += double(a[size_t(s * n + i)]) * a[size_t(s * n + j)] / 12;
        h[size_t(i * n + j)] = sum;
        size += std::abs(sum);
      }
      largest = std::max(largest, size);
    }
    std::vector<double> u = h;
    ASSERT_TRUE(backend->run(FactorizeInverse{u.data(), n}));
    std::vector<double> product(size_t(n * n));  // U·H
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j)
        ASSERT_EQ(u[size_t(i * n + j)], h[size_t(i * n + j)]) << "below the diagonal nothing changes";
      for (int64_t k = i; k < n; ++k)
        for (int64_t j = 0; j < n; ++j)
          product[size_t(i * n + j)] += u[size_t(i * n + k)] * h[size_t(k * n + j)];
    }
    const double bound = 4 * double(n) * kRound64 * largest / 0.05;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t k = j; k < n; ++k) sum += product[size_t(i * n + k)] * u[size_t(j * n + k)];
        ASSERT_NEAR(sum, i == j, bound) << i << ", " << j;
      }
  }
}

TEST(SimtFactorize, RefusesWhatIsNotPositiveDefiniteOrNotFinite) {
  const auto backend = emulated_backend();
  for (const int64_t n : {3, 70})
    for (const int64_t bad : {int64_t(0), n / 2, n - 1})
      for (const double value :
           {-0.5, 0.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        std::vector<double> h(size_t(n * n));
        for (int64_t i = 0; i < n; ++i) h[size_t(i * n + i)] = i == bad ? value : 2;
        EXPECT_FALSE(backend->run(FactorizeInverse{h.data(), n})) << n << ", " << bad << ", " << value;
      }
  std::vector<double> singular{1, 1, 1, 1};
  EXPECT_FALSE(backend->run(FactorizeInverse{singular.data(), 2}));
}

TEST(SimtRoundColumns, GivesTheBitsOfTheCpu) {
  const auto backend = emulated_backend(), cpu = find_backend({.device = "cpu", .threads = 1});
  for (const int64_t rows : {1, 19})
    for (const int64_t width : {1, 33, 128})
      for (const int bits : {2, 4, 8}) {
        SCOPED_TRACE(str(rows, "x", width, ", ", bits, " bits"));
        Random random{uint64_t(rows * width + bits)};
        std::vector<float> u = random.floats(width * width, -0.2f, 0.2f), zeros;
        for (int64_t i = 0; i < width; ++i) u[size_t(i * width + i)] = random.uniform(0.5f, 1.5f);
        const std::vector<float> w = random.floats(rows * width),
                                 scales = random.floats(3 * rows, 0.05f, 0.4f);
        for (int64_t i = 0; i < 3 * rows; ++i) zeros.push_back(float(random.below(1 << bits)));
        std::vector<int32_t> groups;
        for (int64_t i = 0; i < width; ++i) groups.push_back(int32_t(random.below(3)));
        std::vector<float> errors[2] = {w, w};
        std::vector<uint8_t> codes[2] = {std::vector<uint8_t>(w.size()), std::vector<uint8_t>(w.size())};
        for (int on = 0; on < 2; ++on)
          (on ? *backend : *cpu)
              .run(RoundColumns{.w = test::view_of(errors[on], {rows, width}),
                                .u = test::view_of(u, {width, width}),
                                .scales = test::view_of(scales, {3, rows}),
                                .zeros = test::view_of(zeros, {3, rows}),
                                .groups = test::view_of(groups),
                                .codes = OutputView(codes[on].data(), DType::u8, {rows, width}),
                                .max_code = (1 << bits) - 1});
        ASSERT_EQ(codes[1], codes[0]);
        ASSERT_TRUE(same_bits(errors[1], errors[0]));
      }
}

TEST(SimtHalfRows, GiveTheBitsOfTheCpu) {
  const auto backend = emulated_backend(), cpu = find_backend({.device = "cpu", .threads = 1});
  constexpr int64_t kRows = 6, kWidth = 300;
  Random random{8};
  std::vector<float> x = random.floats(kRows * kWidth, -2, 2);
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t i = 0; i < kWidth; ++i) x[size_t(row * kWidth + i)] *= std::ldexp(1.0f, int(40 * row) - 110);
  x[5] = -std::numeric_limits<float>::infinity();
  std::vector<uint16_t> halves[2] = {std::vector<uint16_t>(x.size()), std::vector<uint16_t>(x.size())};
  std::vector<float> scales[2] = {std::vector<float>(kRows), std::vector<float>(kRows)}, back[2] = {x, x};
  for (int on = 0; on < 2; ++on) {
    Backend& runs = on ? *backend : *cpu;
    const OutputView to(halves[on].data(), DType::f16, {kRows, kWidth});
    const OutputView by(scales[on].data(), DType::f32, {kRows});
    runs.run(StoreHalfRows{.x = test::view_of(x, {kRows, kWidth}), .halves = to, .scales = by});
    runs.run(LoadHalfRows{.halves = to, .scales = by, .x = test::view_of(back[on], {kRows, kWidth})});
  }
  EXPECT_EQ(halves[1], halves[0]);
  EXPECT_TRUE(same_bits(scales[1], scales[0]));
  EXPECT_TRUE(same_bits(back[1], back[0]));
}

}  // namespace
}  // namespace ballast
