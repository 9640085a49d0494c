// Residual binary encoding (BiLLM, arXiv 2402.04291, §3): signs with a few scales per row and block of columns.
//
// In each block of columns some are salient, the same ones for all rows. A salient weight is binarized twice
// (equation 9: the residual of the first sign is binarized again), the others once in one of two magnitude
// groups (§3.4). Either way a weight is two bits and picks one of four values of its row and block:
//
//   salient:  mean + (bit 0 ? +1 : −1)·scale_1 + (bit 1 ? +1 : −1)·scale_2
//   else:     bit 1 = group:  mean_g + (bit 0 ? +1 : −1)·scale_g
//
// Differs from the paper, which counts 1.1 bits: the group bit and all coefficients are stored and counted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/encodings/views.h"

namespace ballast {

struct ResidualBinaryMatrix {
  /// Order of a row's coefficients in one block.
  enum Coefficient { kMean, kScale1, kScale2, kMean0, kScale0, kMean1, kScale1Group, kCoefficients };
  static_assert(kCoefficients == ResidualBinaryView::kCoefficients);

  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t block_size = 128;            ///< columns; the last block may be shorter
  std::vector<uint8_t> codes;          ///< [out_features, in_features], each < 4
  std::vector<uint8_t> salient;        ///< [in_features], 0 or 1
  std::vector<uint16_t> coefficients;  ///< binary16 [out_features, blocks(), kCoefficients], finite

  int64_t blocks() const { return (in_features + block_size - 1) / block_size; }
  /// The value that `code` stands for; f32, coefficients added in the order written above.
  float value_of(int64_t row, int64_t block, bool is_salient, int code) const;
  /// Writes the decoded row, `in_features` floats.
  void decode_row(int64_t row, float* out) const;
  /// Sizes, ranges and finiteness. Throws Error starting with `name`.
  void check(const std::string& name) const;
  ResidualBinaryView facts() const { return {out_features, in_features, block_size, {}}; }
  double bits_per_weight() const { return facts().bits_per_weight(); }
  bool operator==(const ResidualBinaryMatrix&) const = default;
};

}  // namespace ballast
