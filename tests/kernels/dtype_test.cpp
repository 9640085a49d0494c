#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/random.h"

namespace ballast {
namespace {

// Nearest number with `digits` significant bits and a smallest exponent, ties to even, by exact f64
// arithmetic: an independent statement of what both conversions must do.
double rounded(double value, int digits, int lowest_exponent, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), lowest_exponent);
  const double unit = std::ldexp(1.0, exponent - digits + 1);
  const double nearest = std::nearbyint(value / unit) * unit;
  return std::abs(nearest) > largest ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                     : nearest;
}
double to_half(float value) {
  return rounded(value, 11, -14, 65504);
}
double to_bfloat(float value) {
  return rounded(value, 8, -126, std::ldexp(255.0, 120));
}

bool same(float actual, double expected) {
  if (std::isnan(expected)) return std::isnan(actual);
  return double(actual) == expected && std::signbit(actual) == std::signbit(expected);
}

TEST(Dtype, EveryHalfHasItsIeeeValue) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const int exponent = int(h >> 10 & 31), mantissa = int(h & 1023);
    double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) value = mantissa ? std::nan("") : std::numeric_limits<double>::infinity();
    if (h >> 15) value = -value;
    ASSERT_TRUE(same(f16_to_f32(uint16_t(h)), value)) << h;
  }
}

TEST(Dtype, EveryHalfAndBfloatReturnsFromF32) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float half = f16_to_f32(uint16_t(h)), bfloat = bf16_to_f32(uint16_t(h));
    if (std::isnan(half)) {
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(half)))) << h;
    } else {
      ASSERT_EQ(f32_to_f16(half), h);
    }
    if (std::isnan(bfloat)) {
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(bfloat)))) << h;
    } else {
      ASSERT_EQ(f32_to_bf16(bfloat), h);
    }
  }
}

// Between two neighbours: the middle, and one f32 step to either side of it.
TEST(Dtype, RoundsAroundEveryTieToNearestEven) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (uint32_t h = 0; h < 65536; ++h) {
    for (bool bfloat : {false, true}) {
      const float here = bfloat ? bf16_to_f32(uint16_t(h)) : f16_to_f32(uint16_t(h));
      const float next = bfloat ? bf16_to_f32(uint16_t(h + 1)) : f16_to_f32(uint16_t(h + 1));
      if (!std::isfinite(here) || !std::isfinite(next) || (h & 0x7FFF) == 0x7FFF) continue;
      const float middle = float((double(here) + double(next)) / 2);
      for (float value : {middle, std::nextafter(middle, infinity), std::nextafter(middle, -infinity)}) {
        const float actual = bfloat ? bf16_to_f32(f32_to_bf16(value)) : f16_to_f32(f32_to_f16(value));
        ASSERT_TRUE(same(actual, bfloat ? to_bfloat(value) : to_half(value)))
            << value << " became " << actual << (bfloat ? " in bf16" : " in f16");
      }
    }
  }
}

TEST(Dtype, RandomBitPatternsRoundToNearestEven) {
  test::Random random(1);
  for (int i = 0; i < 300000; ++i) {
    const float value = std::bit_cast<float>(uint32_t(random.bits()));
    ASSERT_TRUE(same(f16_to_f32(f32_to_f16(value)), to_half(value))) << value;
    ASSERT_TRUE(same(bf16_to_f32(f32_to_bf16(value)), to_bfloat(value))) << value;
  }
}

TEST(Dtype, OverflowsToInfinityAtTheTie) {
  EXPECT_EQ(f32_to_f16(65504.0f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(std::nextafter(65520.0f, 0.0f)), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(-1e30f), 0xFC00);
  EXPECT_EQ(f32_to_f16(-std::numeric_limits<float>::infinity()), 0xFC00);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
}

TEST(Dtype, UnderflowsToSignedZeroAtTheTie) {
  EXPECT_EQ(f32_to_f16(0x1p-24f), 1);
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0);
  EXPECT_EQ(f32_to_f16(std::nextafter(0x1p-25f, 1.0f)), 1);
  EXPECT_EQ(f32_to_f16(-0x1p-26f), 0x8000);
  EXPECT_EQ(f32_to_f16(-0.0f), 0x8000);
}

TEST(Dtype, NanWhoseMantissaBitsAreAllCutOffStaysNan) {
  const float nan = std::bit_cast<float>(0x7F800001u);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(nan))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(nan))));
}

TEST(Dtype, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4);
  EXPECT_EQ(size_of(DType::i32), 4);
  EXPECT_EQ(size_of(DType::f16), 2);
  EXPECT_EQ(size_of(DType::bf16), 2);
  EXPECT_EQ(size_of(DType::u8), 1);
  EXPECT_EQ(name_of(DType::bf16), "bf16");
}

}  // namespace
}  // namespace ballast
