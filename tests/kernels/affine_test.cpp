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
  return test::random_affine(random, 4, 3, 32, 16);
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

}  // namespace
}  // namespace ballast
