#include "kernels/ops/half_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::IsaTest;
using test::Random;
using test::same_bits;

struct Stored {
  std::vector<uint16_t> halves;
  std::vector<float> scales, loaded;
};

Stored round_trip(Backend& backend, const std::vector<float>& x, int64_t rows, int64_t width) {
  Stored out{std::vector<uint16_t>(x.size()), std::vector<float>(size_t(rows)), std::vector<float>(x.size())};
  const OutputView halves(out.halves.data(), DType::f16, {rows, width});
  const OutputView scales(out.scales.data(), DType::f32, {rows});
  backend.run(StoreHalfRows{.x = test::view_of(x, {rows, width}), .halves = halves, .scales = scales});
  backend.run(LoadHalfRows{
      .halves = halves, .scales = scales, .x = OutputView(out.loaded.data(), DType::f32, {rows, width})});
  return out;
}

class HalfRows : public IsaTest {};
BALLAST_FOR_ALL_ISAS(HalfRows);

TEST_P(HalfRows, ErrorIsBoundedAtEveryMagnitude) {
  for (int64_t width : {1, 15, 16, 17, 100})
    for (int exponent : {-90, -30, -14, 0, 15, 16, 60, 120}) {
      SCOPED_TRACE(str("width ", width, ", 2^", exponent));
      constexpr int64_t kRows = 7;
      Random random{uint64_t(width + exponent + 200)};
      std::vector<float> x = random.floats(kRows * width);
      for (size_t i = 0; i < x.size(); ++i) x[i] = std::ldexp(x[i], exponent - int(i % 23));
      const Stored stored = round_trip(*backend_, x, kRows, width);
      for (int64_t row = 0; row < kRows; ++row) {
        float largest = 0;
        for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(x[size_t(row * width + i)]));
        for (int64_t i = 0; i < width; ++i) {
          const size_t at = size_t(row * width + i);
          ASSERT_LE(std::abs(double(stored.loaded[at]) - x[at]),
                    std::ldexp(std::abs(double(x[at])), -11) + std::ldexp(double(largest), -39));
        }
      }
      const Stored scalar = round_trip(*test::cpu_backend("scalar"), x, kRows, width);
      ASSERT_TRUE(same_bits(stored.loaded, scalar.loaded)) << "scalar";
    }
}

TEST_P(HalfRows, StoringWhatWasLoadedChangesNothing) {
  constexpr int64_t kRows = 64, kWidth = 37;
  Random random(3);
  std::vector<float> x = random.floats(kRows * kWidth);
  // Largest values that round up to the next power of two, beside values that binary16 holds as subnormal.
  for (int64_t row = 0; row < kRows; ++row) {
    x[size_t(row * kWidth)] = std::nextafter(2.0f, 1.0f);
    for (int64_t i = 1; i < kWidth; i += 2) x[size_t(row * kWidth + i)] *= 0x1p-28f;
  }
  const Stored once = round_trip(*backend_, x, kRows, kWidth);
  const Stored twice = round_trip(*backend_, once.loaded, kRows, kWidth);
  EXPECT_TRUE(same_bits(once.loaded, twice.loaded));
  EXPECT_TRUE(same_bits(once.scales, twice.scales));
  EXPECT_EQ(once.halves, twice.halves);
}

TEST_P(HalfRows, KeepsWhatIsNotFiniteInItsRow) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr int64_t kWidth = 18;
  std::vector<float> x(3 * kWidth, 1.5f);
  x[3] = kInfinity;
  x[kWidth + 17] = std::numeric_limits<float>::quiet_NaN();
  const Stored stored = round_trip(*backend_, x, 3, kWidth);
  EXPECT_EQ(stored.loaded[3], kInfinity);
  EXPECT_TRUE(std::isnan(stored.loaded[kWidth + 17]));
  for (int64_t i = 0; i < kWidth; ++i) EXPECT_EQ(stored.loaded[size_t(2 * kWidth + i)], 1.5f);
}

TEST_P(HalfRows, ZerosStayZeros) {
  const Stored stored = round_trip(*backend_, std::vector<float>(20), 1, 20);
  EXPECT_TRUE(same_bits(stored.loaded, std::vector<float>(20)));
}

}  // namespace
}  // namespace ballast
