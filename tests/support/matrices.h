// Random matrices in every encoding, and what they decode to.
#pragma once

#include <vector>

#include "kernels/encodings/quantized_matrix.h"
#include "tests/support/random.h"

namespace ballast::test {

/// Row-major values rounded to a stored float type, and what they decode to.
struct DenseMatrix {
  DType dtype = DType::f32;
  int64_t out_features = 0, in_features = 0;
  std::vector<float> values;
  std::vector<uint16_t> halves;  ///< of f16 and bf16

  DenseMatrix(DType type, int64_t out, int64_t in, std::vector<float> numbers)
      : dtype(type), out_features(out), in_features(in), values(std::move(numbers)) {
    if (dtype == DType::f32) return;
    for (float& value : values) {
      halves.push_back(dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value));
      value = dtype == DType::f16 ? f16_to_f32(halves.back()) : bf16_to_f32(halves.back());
    }
  }
  TensorView stored() const {
    const void* data = dtype == DType::f32 ? static_cast<const void*>(values.data()) : halves.data();
    return TensorView(data, dtype, {out_features, in_features});
  }
};
/// Below 8 bits with half zero points as often as with whole ones.
inline AffineMatrix random_affine(Random& random, int bits, int64_t out, int64_t in, int64_t group_size) {
  AffineMatrix matrix{.bits = bits, .out_features = out, .in_features = in, .group_size = group_size};
  for (int64_t i = 0; i < out * in; ++i) matrix.codes.push_back(uint8_t(random.below(1 << bits)));
  for (int64_t i = 0; i < out * matrix.groups(); ++i) {
    matrix.scales.push_back(f32_to_f16(random.uniform(0.001f, 0.1f)));
    matrix.zero_points.push_back(uint8_t(random.below(1 << bits)));
  }
  matrix.half_zeros = bits < 8 && random.below(2) == 1;
  matrix.check("random matrix");
  return matrix;
}
/// Codes of `bits` bits.
inline std::vector<uint8_t> random_codes(Random& random, int bits, int64_t count) {
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (uint8_t& code : codes) code = uint8_t(random.below(1 << bits));
  return codes;
}
/// Binary16 numbers in [low, high).
inline std::vector<uint16_t> random_halves(Random& random, int64_t count, float low, float high) {
  std::vector<uint16_t> halves(static_cast<size_t>(count));
  for (uint16_t& half : halves) half = f32_to_f16(random.uniform(low, high));
  return halves;
}

/// About `share` of the weights become outliers; row 1 gets none and the last row nothing else.
inline SparseOutlierMatrix random_outliers(Random& random, int bits, int stat_bits, int64_t out, int64_t in,
                                           int64_t group_size, float share = 0.02f) {
  SparseOutlierMatrix matrix{.bits = bits,
                             .stat_bits = stat_bits,
                             .out_features = out,
                             .in_features = in,
                             .group_size = group_size,
                             .codes = random_codes(random, bits, out * in)};
  matrix.scale_codes = random_codes(random, stat_bits, out * matrix.groups());
  matrix.zero_codes = random_codes(random, stat_bits, out * matrix.groups());
  for (int64_t i = 0; i < matrix.tiles() * matrix.groups(); ++i)
    for (float high : {0.1f, 0.02f, 4.0f, -1.0f}) matrix.stats.push_back(f32_to_f16(random.uniform(0, high)));
  matrix.outlier_rows = {0};
  for (int64_t row = 0; row < out; ++row) {
    for (int64_t column = 0; column < in; ++column)
      if (row != 1 && (row == out - 1 || random.uniform(0, 1) < share)) {
        matrix.outlier_columns.push_back(uint16_t(column));
        matrix.outlier_values.push_back(f32_to_f16(random.uniform(-2, 2)));
      }
    matrix.outlier_rows.push_back(uint32_t(matrix.outlier_columns.size()));
  }
  matrix.check("random matrix");
  return matrix;
}

inline ResidualBinaryMatrix random_binary(Random& random, int64_t out, int64_t in, int64_t block_size) {
  ResidualBinaryMatrix matrix{.out_features = out,
                              .in_features = in,
                              .block_size = block_size,
                              .codes = random_codes(random, 2, out * in),
                              .salient = random_codes(random, 1, in)};
  matrix.coefficients =
      random_halves(random, out * matrix.blocks() * ResidualBinaryMatrix::kCoefficients, -0.5f, 0.5f);
  matrix.check("random matrix");
  return matrix;
}

template <class Matrix>
DenseMatrix decoded(const Matrix& matrix) {
  std::vector<float> values(size_t(matrix.out_features * matrix.in_features));
  for (int64_t row = 0; row < matrix.out_features; ++row)
    matrix.decode_row(row, values.data() + row * matrix.in_features);
  return {DType::f32, matrix.out_features, matrix.in_features, std::move(values)};
}

}  // namespace ballast::test
