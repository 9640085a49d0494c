#include "kernels/encodings/residual_binary.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::message_of;
using test::Random;
using Matrix = ResidualBinaryMatrix;

Matrix small() {
  Random random(3);
  return test::random_binary(random, 5, 40, 16);
}

TEST(ResidualBinary, ValueFollowsTheEquation) {
  Matrix matrix = small();
  const float numbers[] = {0.5f, 4, 1, 10, 2, 20, 3};
  for (size_t i = 0; i < 7; ++i) matrix.coefficients[(3 * 3 + 2) * 7 + i] = f32_to_f16(numbers[i]);
  const float salient[] = {0.5f - 4 - 1, 0.5f + 4 - 1, 0.5f - 4 + 1, 0.5f + 4 + 1};
  const float others[] = {10 - 2, 10 + 2, 20 - 3, 20 + 3};
  std::vector<float> row(40);
  for (uint8_t flag : {0, 1})
    for (uint8_t code = 0; code < 4; ++code) {
      matrix.codes[3 * 40 + 35] = code;
      matrix.salient[35] = flag;
      matrix.decode_row(3, row.data());
      EXPECT_EQ(row[35], (flag ? salient : others)[code]);
    }
}

TEST(ResidualBinary, BitsPerWeightCountsEveryPart) {
  const Matrix matrix = small();
  EXPECT_EQ(matrix.blocks(), 3);
  EXPECT_DOUBLE_EQ(matrix.bits_per_weight(), 2 + (40 + 5 * 3 * 7 * 16) / 200.0);
}

TEST(ResidualBinary, PackedSizeIsCloseToTheStoredOne) {
  Random random(5);
  const Matrix matrix = test::random_binary(random, 768, 768, 128);
  const int64_t bytes = test::cpu_backend("scalar")->packed_bytes(matrix.facts());
  EXPECT_NEAR(double(bytes) * 8 / (768 * 768), matrix.bits_per_weight(), 0.001);
}

TEST(ResidualBinary, CheckNamesWhatIsWrong) {
  struct Damage {
    const char* message;
    std::function<void(Matrix&)> apply;
  };
  const Damage damages[] = {
      {"w: shape is [5, 0]", [](Matrix& m) { m.in_features = 0; }},
      {"w: block_size is 0", [](Matrix& m) { m.block_size = 0; }},
      {"do not have the sizes", [](Matrix& m) { m.codes.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.salient.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.coefficients.pop_back(); }},
      {"w: code 4 exceeds 3", [](Matrix& m) { m.codes[9] = 4; }},
      {"w: salient flag 2 is neither 0 nor 1", [](Matrix& m) { m.salient[9] = 2; }},
      {"w: a coefficient is not finite", [](Matrix& m) { m.coefficients[9] = 0x7C00; }},
  };
  EXPECT_NO_THROW(small().check("w"));
  for (const Damage& damage : damages) {
    Matrix matrix = small();
    damage.apply(matrix);
    const std::string message = message_of<Error>([&] { matrix.check("w"); });
    EXPECT_NE(message.find(damage.message), message.npos) << message << ", expected " << damage.message;
  }
}

}  // namespace
}  // namespace ballast
