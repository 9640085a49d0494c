// Sparse-outlier encoding (SpQR, arXiv 2306.03078, §4): small affine groups whose scales and zero points are
// quantized themselves, and a few weights kept in 16 bits.
//
//   W[row][column] = outlier value where the row lists the column, else scale[row][g] * (code − zero[row][g])
//   scale[row][g] = scale_low[t][g] + scale_step[t][g] * scale_code[row][g],   t = row / kStatRows
//   zero[row][g]  = zero_low[t][g] + zero_step[t][g] * zero_code[row][g]
//
// g = column / group_size. Zero points are real numbers and may lie outside the codes. All arithmetic is f32,
// one rounding per operation written above.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/encodings/views.h"

namespace ballast {

struct SparseOutlierMatrix {
  static constexpr int64_t kStatRows = SparseOutlierView::kStatRows;

  int bits = 0;       ///< of the codes: 2, 3, 4 or 8
  int stat_bits = 3;  ///< of scale and zero codes, 1 … 8
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;      ///< divides in_features
  std::vector<uint8_t> codes;  ///< [out_features, in_features], each < 2^bits; any code under an outlier
  std::vector<uint8_t> scale_codes;  ///< [out_features, groups()], each < 2^stat_bits
  std::vector<uint8_t> zero_codes;   ///< [out_features, groups()]
  /// binary16 [tiles(), groups(), 4]: scale_low, scale_step, zero_low, zero_step; finite
  std::vector<uint16_t> stats;
  std::vector<uint32_t> outlier_rows;     ///< [out_features + 1]: where each row's outliers begin
  std::vector<uint16_t> outlier_columns;  ///< ascending within a row; in_features is at most 65536
  std::vector<uint16_t> outlier_values;   ///< binary16, finite

  int64_t groups() const { return in_features / group_size; }
  int64_t tiles() const { return (out_features + kStatRows - 1) / kStatRows; }
  float scale(int64_t row, int64_t group) const;
  float zero(int64_t row, int64_t group) const;
  /// Writes the decoded row, `in_features` floats.
  void decode_row(int64_t row, float* out) const;
  /// Sizes, ranges and finiteness. Throws Error starting with `name`.
  void check(const std::string& name) const;
  SparseOutlierView facts() const {
    return {bits, stat_bits, out_features, in_features, group_size, int64_t(outlier_values.size()), {}};
  }
  double bits_per_weight() const { return facts().bits_per_weight(); }
  bool operator==(const SparseOutlierMatrix&) const = default;
};

}  // namespace ballast
