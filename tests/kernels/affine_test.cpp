#include "kernels/encodings/affine.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::message_of;
using test::Random;

AffineMatrix small() {
  Random random(3);
  AffineMatrix matrix = test::random_affine(random, 4, 3, 32, 16);
  matrix.half_zeros = false;
  return matrix;
}

TEST(Affine, ValueIsScaleTimesCodeMinusZeroPoint) {
  AffineMatrix matrix = small();
  matrix.codes[size_t(1 * 32 + 20)] = 13;
  matrix.scales[size_t(1 * 2 + 1)] = f32_to_f16(0.25f);
  matrix.zero_points[size_t(1 * 2 + 1)] = 15;
  EXPECT_EQ(matrix.value(1, 20), -0.5f);
}

TEST(Affine, DecodeRowEqualsValueForEveryWidthAndGroup) {
  Random random(4);
  for (int bits : {2, 3, 4, 8})
    for (int64_t group_size : {1, 5, 16, 80}) {
      const AffineMatrix matrix = test::random_affine(random, bits, 3, 80, group_size);
      std::vector<float> row(80);
      for (int64_t r = 0; r < 3; ++r) {
        matrix.decode_row(r, row.data());
        for (int64_t column = 0; column < 80; ++column)
          ASSERT_EQ(row[size_t(column)], matrix.value(r, column)) << bits << " bits, group " << group_size;
      }
    }
}

TEST(Affine, BitsPerWeightCountsScaleAndZeroPoint) {
  AffineMatrix matrix = small();
  EXPECT_DOUBLE_EQ(matrix.bits_per_weight(), 4 + 20.0 / 16);
  EXPECT_EQ(matrix.groups(), 2);
  EXPECT_EQ(matrix.max_code(), 15);
}

struct Damage {
  const char* name;
  std::function<void(AffineMatrix&)> apply;
  const char* message;
};

TEST(Affine, CheckNamesWhatIsWrong) {
  EXPECT_NO_THROW(small().check("w"));
  const Damage damages[] = {
      {"bits", [](AffineMatrix& m) { m.bits = 5; }, "w: bits is 5, expected 2, 3, 4 or 8"},
      {"shape", [](AffineMatrix& m) { m.out_features = 0; }, "w: shape is [0, 32]"},
      {"group", [](AffineMatrix& m) { m.group_size = 12; },
       "w: group size 12 does not divide in_features 32"},
      {"no group", [](AffineMatrix& m) { m.group_size = 0; },
       "w: group size 0 does not divide in_features 32"},
      {"codes", [](AffineMatrix& m) { m.codes.pop_back(); }, "w: 95 codes for 96"},
      {"scales", [](AffineMatrix& m) { m.scales.push_back(0x3C00); }, "w: 7 scales for 6"},
      {"zeros", [](AffineMatrix& m) { m.zero_points.pop_back(); }, "w: 5 zero points for 6 scales"},
      {"code", [](AffineMatrix& m) { m.codes[50] = 16; }, "w: code 16 exceeds 15"},
      {"zero", [](AffineMatrix& m) { m.zero_points[2] = 99; }, "w: zero point 99 exceeds 15"},
      {"scale 0", [](AffineMatrix& m) { m.scales[3] = 0; }, "w: scale 0 of row 1, group 1 is not"},
      {"scale -1", [](AffineMatrix& m) { m.scales[4] = 0xBC00; }, "w: scale -1 of row 2, group 0 is not"},
      {"scale inf", [](AffineMatrix& m) { m.scales[0] = 0x7C00; }, "w: scale inf of row 0, group 0 is not"},
  };
  for (const Damage& damage : damages) {
    AffineMatrix matrix = small();
    damage.apply(matrix);
    const std::string message = message_of<Error>([&] { matrix.check("w"); });
    EXPECT_EQ(message.rfind(damage.message, 0), 0u) << damage.name << ": " << message;
  }
}

TEST(Affine, HalfZeroPointsLieAroundTheMiddleOfTheCodes) {
  const float zeros[3][3] = {{1, 1.5f, 2.5f}, {2, 3.5f, 5.5f}, {4, 7.5f, 11.5f}};
  for (const int bits : {2, 3, 4}) {
    const int middle = (1 << (bits - 1)) - 1;
    AffineMatrix matrix{.bits = bits, .out_features = 3, .in_features = 4, .group_size = 4};
    matrix.half_zeros = true;
    matrix.codes = {0, 1, 2, 3, 3, 2, 1, 0, 0, 0, 3, 3};
    matrix.scales.assign(3, f32_to_f16(0.5f));
    matrix.zero_points = {0, uint8_t(middle), uint8_t(matrix.max_code())};
    matrix.check("w");
    std::vector<float> row(4);
    for (int64_t r = 0; r < 3; ++r) {
      EXPECT_EQ(matrix.zero(r, 0), zeros[bits - 2][r]);
      matrix.decode_row(r, row.data());
      for (int64_t k = 0; k < 4; ++k) {
        EXPECT_EQ(row[size_t(k)], 0.5f * (float(matrix.codes[size_t(4 * r + k)]) - zeros[bits - 2][r]));
        EXPECT_EQ(row[size_t(k)], matrix.value(r, k));
      }
    }
  }
}

TEST(Affine, WholeZeroPointsInsteadOfHalfOnesAreTheSameWeights) {
  for (const int bits : {2, 3, 4}) {
    test::Random random(uint64_t(bits) + 1);
    AffineMatrix matrix = test::random_affine(random, bits, 9, 24, 8);
    matrix.half_zeros = true;
    const AffineMatrix whole = matrix.with_whole_zeros();
    whole.check("w");
    EXPECT_FALSE(whole.half_zeros);
    EXPECT_EQ(whole.bits, bits == 4 ? 8 : bits + 1);
    for (int64_t row = 0; row < 9; ++row)
      for (int64_t column = 0; column < 24; ++column)
        ASSERT_EQ(whole.value(row, column), matrix.value(row, column));
  }
  AffineMatrix eight{.bits = 8, .out_features = 1, .in_features = 1, .group_size = 1};
  eight.half_zeros = true;
  eight.codes = eight.zero_points = {0};
  eight.scales = {0x3C00};
  EXPECT_EQ(message_of<Error>([&] { eight.check("w"); }),
            "w: 8 bits with half zero points, expected whole ones");
}

}  // namespace
}  // namespace ballast
