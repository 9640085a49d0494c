#include "quantize/records.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

std::vector<uint8_t> random_codes(test::Random& random, int64_t count, int limit) {
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < count; ++i) codes.push_back(uint8_t(random.below(limit)));
  return codes;
}

AffineMatrix affine(int bits) {
  test::Random random(1);
  AffineMatrix matrix{.bits = bits, .out_features = 5, .in_features = 12, .group_size = 4};
  matrix.codes = random_codes(random, 5 * 12, 1 << bits);
  matrix.zero_points = random_codes(random, 5 * 3, 1 << bits);
  for (int i = 0; i < 5 * 3; ++i) matrix.scales.push_back(f32_to_f16(random.uniform(0.01f, 1)));
  return matrix;
}

SparseOutlierMatrix sparse() {
  test::Random random(2);
  SparseOutlierMatrix matrix{.bits = 3, .stat_bits = 3, .out_features = 2, .in_features = 8, .group_size = 4};
  matrix.codes = random_codes(random, 16, 8);
  matrix.scale_codes = random_codes(random, 4, 8);
  matrix.zero_codes = random_codes(random, 4, 8);
  matrix.stats.assign(size_t(matrix.tiles() * matrix.groups() * 4), f32_to_f16(0.5f));
  matrix.outlier_rows = {0, 1, 3};
  matrix.outlier_columns = {7, 2, 5};
  matrix.outlier_values = {f32_to_f16(9), f32_to_f16(-8), f32_to_f16(7)};
  return matrix;
}

ResidualBinaryMatrix binary() {
  test::Random random(3);
  ResidualBinaryMatrix matrix{.out_features = 3, .in_features = 10, .block_size = 4};
  matrix.codes = random_codes(random, 30, 4);
  matrix.salient = random_codes(random, 10, 2);
  matrix.coefficients.assign(size_t(3 * 3 * ResidualBinaryMatrix::kCoefficients), f32_to_f16(0.25f));
  return matrix;
}

LayerRecord record_of(QuantizedMatrix matrix) {
  const auto rows = size_t(out_features(matrix));
  return {.matrix = std::move(matrix),
          .bias = std::vector<float>(rows, -0.0f),
          .positions = std::vector<float>(rows * 2, 1e-40f),
          .report = {.name = "model.layers.0.fc1",
                     .out_features = 5,
                     .in_features = 12,
                     .bits = 3,
                     .group_size = 4,
                     .bits_per_weight = 3.25,
                     .error_before = 0.1,
                     .error_after = 1e-300,
                     .damping = 0.01,
                     .zero_inputs = 0.75,
                     .outlier_share = 0.005,
                     .seconds = 2.5}};
}

std::vector<LayerRecord> one_of_each() {
  std::vector<LayerRecord> records;
  for (const int bits : {2, 3, 4, 8}) records.push_back(record_of(affine(bits)));
  records.push_back(record_of(sparse()));
  records.push_back(record_of(binary()));
  return records;
}

TEST(Records, LayersComeBackBitByBit) {
  for (const LayerRecord& record : one_of_each()) {
    const std::string bytes = to_bytes(record);
    const LayerRecord back = layer_from_bytes(bytes, "x");
    EXPECT_EQ(to_bytes(back), bytes);
    ASSERT_EQ(back.matrix.index(), record.matrix.index());
    std::vector<float> row(12), expected(12);
    for (int64_t r = 0; r < out_features(record.matrix); ++r) {
      decode_row(record.matrix, r, expected.data());
      decode_row(back.matrix, r, row.data());
      EXPECT_EQ(row, expected);
    }
    EXPECT_EQ(back.bias, record.bias);
    EXPECT_EQ(back.positions, record.positions);
    EXPECT_EQ(back.report.name, record.report.name);
    EXPECT_EQ(back.report.error_after, record.report.error_after);
    EXPECT_EQ(back.report.seconds, record.report.seconds);
  }
}

TEST(Records, TokensComeBack) {
  const CalibrationTokens tokens{2, 3, {1, -2, 3, 4, 5, INT32_MAX}, "some text.txt"};
  const CalibrationTokens back = tokens_from_bytes(to_bytes(tokens), "x");
  EXPECT_EQ(back.samples, 2);
  EXPECT_EQ(back.length, 3);
  EXPECT_EQ(back.ids, tokens.ids);
  EXPECT_EQ(back.source, tokens.source);
}

TEST(Records, EveryTruncationIsAnError) {
  for (const LayerRecord& record : one_of_each()) {
    const std::string bytes = to_bytes(record);
    for (size_t size = 0; size < bytes.size(); ++size)
      EXPECT_TRUE(throws_with("x: ", [&] { layer_from_bytes(bytes.substr(0, size), "x"); })) << size;
    EXPECT_TRUE(throws_with("bytes too many", [&] { layer_from_bytes(bytes + "!", "x"); }));
  }
  const std::string bytes = to_bytes(CalibrationTokens{1, 2, {3, 4}, "self"});
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_THROW(tokens_from_bytes(bytes.substr(0, size), "x"), Error) << size;
}

TEST(Records, ActivationSitesComeBack) {
  const ActivationSites sites = {{"a.input", {.bits = 6, .step = 0.3f, .zero_point = 9}},
                                 {"b.output", {.kind = ActivationGrid::Kind::twin_sign, .bits = 4, .step = 0.1f, .shift = 3}}};
  const std::string bytes = to_bytes(sites, {1.5f, 2}, {0, -3});
  EXPECT_EQ(sites_from_bytes(bytes, "x"), std::tuple(sites, std::vector<float>{1.5f, 2}, std::vector<float>{0, -3}));
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_TRUE(throws_with("x: ", [&] { sites_from_bytes(bytes.substr(0, size), "x"); })) << size;
}

// Any bytes: a value that passes its checks, or one Error.
TEST(Records, DamagedBytesGiveValuesOrErrors) {
  test::Random random(4);
  for (const LayerRecord& record : one_of_each()) {
    const std::string bytes = to_bytes(record);
    for (size_t at = 0; at < bytes.size(); ++at)
      for (const char byte : {'\0', '\x7F', '\xFF', char(random.below(256))}) {
        std::string damaged = bytes;
        damaged[at] = byte;
        try {
          std::visit([](const auto& m) { m.check("x"); }, layer_from_bytes(damaged, "x").matrix);
        } catch (const Error&) {
        }
      }
  }
}

}  // namespace
}  // namespace ballast
