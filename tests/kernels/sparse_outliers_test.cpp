#include "kernels/encodings/sparse_outliers.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::message_of;
using test::Random;

SparseOutlierMatrix small() {
  Random random(3);
  return test::random_outliers(random, 3, 3, 20, 32, 16, 0.1f);
}

TEST(SparseOutliers, ValueFollowsTheEquation) {
  SparseOutlierMatrix matrix = small();
  matrix.codes[17 * 32 + 20] = 5;
  matrix.scale_codes[17 * 2 + 1] = 3;
  matrix.zero_codes[17 * 2 + 1] = 2;
  const float stats[] = {0.5f, 0.25f, -1.0f, 0.75f};
  for (size_t i = 0; i < 4; ++i) matrix.stats[(1 * 2 + 1) * 4 + i] = f32_to_f16(stats[i]);
  matrix.outlier_columns.clear();
  matrix.outlier_values.clear();
  matrix.outlier_rows.assign(21, 0);
  std::vector<float> row(32);
  matrix.decode_row(17, row.data());
  EXPECT_EQ(row[20], 1.25f * (5 - 0.5f));
  matrix.outlier_columns = {20};
  matrix.outlier_values = {f32_to_f16(-7)};
  for (size_t i = 18; i <= 20; ++i) matrix.outlier_rows[i] = 1;
  matrix.decode_row(17, row.data());
  EXPECT_EQ(row[20], -7);
}

TEST(SparseOutliers, BitsPerWeightCountsEveryPart) {
  const SparseOutlierMatrix matrix = small();
  const double parts =
      20 * 2 * (3 + 3) + 2 * 2 * 4 * 16 + 21 * 32 + double(matrix.outlier_values.size()) * 32;
  EXPECT_DOUBLE_EQ(matrix.bits_per_weight(), 3 + parts / (20 * 32));
  EXPECT_DOUBLE_EQ(matrix.facts().outlier_share(), double(matrix.outlier_values.size()) / (20 * 32));
}

TEST(SparseOutliers, PackedSizeIsCloseToTheStoredOne) {
  Random random(5);
  for (int bits : {2, 3, 4, 8}) {
    const auto matrix = test::random_outliers(random, bits, 3, 768, 768, 16, 0.01f);
    const int64_t bytes = test::cpu_backend("scalar")->packed_bytes(matrix.facts());
    EXPECT_NEAR(double(bytes) * 8 / (768 * 768), matrix.bits_per_weight(), 0.03) << bits << " bits";
  }
}

TEST(SparseOutliers, CheckNamesWhatIsWrong) {
  using Matrix = SparseOutlierMatrix;
  struct Damage {
    const char* message;
    std::function<void(Matrix&)> apply;
  };
  const Damage damages[] = {
      {"w: bits is 5", [](Matrix& m) { m.bits = 5; }},
      {"w: stat_bits is 9", [](Matrix& m) { m.stat_bits = 9; }},
      {"w: stat_bits is 0", [](Matrix& m) { m.stat_bits = 0; }},
      {"w: shape is [0, 32]", [](Matrix& m) { m.out_features = 0; }},
      {"at most 65536 columns", [](Matrix& m) { m.in_features = 65552; }},
      {"w: group size 5 does not divide", [](Matrix& m) { m.group_size = 5; }},
      {"do not have the sizes", [](Matrix& m) { m.codes.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.scale_codes.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.zero_codes.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.stats.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.outlier_rows.pop_back(); }},
      {"do not have the sizes", [](Matrix& m) { m.outlier_values.pop_back(); }},
      {"w: code 8 exceeds 7", [](Matrix& m) { m.codes[7] = 8; }},
      {"w: statistics code 8 exceeds 7", [](Matrix& m) { m.scale_codes[7] = 8; }},
      {"w: statistics code 9 exceeds 7", [](Matrix& m) { m.zero_codes[7] = 9; }},
      {"is not finite", [](Matrix& m) { m.stats[5] = 0x7C00; }},
      {"is not finite", [](Matrix& m) { m.outlier_values[5] = 0xFE00; }},
      {"do not span the outliers", [](Matrix& m) { m.outlier_rows[0] = 1; }},
      {"do not span the outliers", [](Matrix& m) { --m.outlier_rows[20]; }},
      {"row offsets descend at row 4", [](Matrix& m) { m.outlier_rows[5] = m.outlier_rows[4] - 1; }},
      {"row offsets descend at row 4", [](Matrix& m) { m.outlier_rows[5] = ~0u; }},
      {"outlier columns of row 19 do not ascend", [](Matrix& m) { m.outlier_columns.back() = 32; }},
      {"outlier columns of row 19 do not ascend",
       [](Matrix& m) { m.outlier_columns.back() = m.outlier_columns[m.outlier_columns.size() - 2]; }},
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
