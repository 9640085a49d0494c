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

}  // namespace ballast
