// What a method produces: one matrix in one of the quantized encodings.
#pragma once

#include <variant>

#include "kernels/encodings/affine.h"
#include "kernels/encodings/residual_binary.h"
#include "kernels/encodings/sparse_outliers.h"

namespace ballast {

using QuantizedMatrix = std::variant<AffineMatrix, SparseOutlierMatrix, ResidualBinaryMatrix>;

inline int64_t out_features(const QuantizedMatrix& matrix) {
  return std::visit([](const auto& m) { return m.out_features; }, matrix);
}
inline int64_t in_features(const QuantizedMatrix& matrix) {
  return std::visit([](const auto& m) { return m.in_features; }, matrix);
}
inline double bits_per_weight(const QuantizedMatrix& matrix) {
  return std::visit([](const auto& m) { return m.bits_per_weight(); }, matrix);
}
inline void decode_row(const QuantizedMatrix& matrix, int64_t row, float* out) {
  std::visit([&](const auto& m) { m.decode_row(row, out); }, matrix);
}

/// Adds the rows of `part`, a matrix of the same encoding and settings, below those of `all`. Matrices whose rows share
/// something beyond their number (salient columns; statistics of kStatRows rows cut in two) cannot be joined.
void append_rows(QuantizedMatrix& all, const QuantizedMatrix& part);

}  // namespace ballast
