// Scales that give each output its full size back.
//
// The q of a row that minimizes d·H·dᵀ, d = w − q, has d ⟂ q: its output is smaller than the row's by what was
// lost (E[(qx)²] = E[(wx)²] − E[(dx)²]), as any regression shrinks. One layer hardly notices, but all layers
// shrink the same way, and what the residual stream carries shrinks with them. With the gain
//   γ = w·H·wᵀ / q·H·wᵀ
// on the row's scales the error is orthogonal to the row's own output instead, E[(w − γq)x · wx] = 0, at the
// price of a share γ² of the row's error.
#pragma once

#include <functional>
#include <span>

#include "kernels/backend.h"
#include "kernels/encodings/affine.h"
#include "kernels/encodings/residual_binary.h"
#include "quantize/curvature.h"

namespace ballast {

using DecodeRow = std::function<void(int64_t row, float* q)>;

/// γ of every row; 1 where it would not be between ½ and 2 or where the row has no output. `decode` writes a
/// row of Q; `damping` as for the codes.
std::vector<float> output_gains(Backend& backend, std::span<const float> weight, const Curvature& curvature,
                                double damping, const DecodeRow& decode);
/// The same for a matrix in any encoding.
template <class Matrix>
requires requires(const Matrix& matrix, float* q) {
  matrix.decode_row(0, q);
}
std::vector<float> output_gains(Backend& backend, std::span<const float> weight, const Curvature& curvature,
                                double damping, const Matrix& matrix) {
  return output_gains(backend, weight, curvature, damping,
                      DecodeRow([&](int64_t row, float* q) { matrix.decode_row(row, q); }));
}

/// Multiplies the scales of each row by its gain and rounds them to binary16; a row whose scales would leave
/// binary16's normal range stays.
void unbias(Backend& backend, std::span<const float> weight, const Curvature& curvature, double damping,
            AffineMatrix& matrix);
/// The same for means and scales.
void unbias(Backend& backend, std::span<const float> weight, const Curvature& curvature, double damping,
            ResidualBinaryMatrix& matrix);

}  // namespace ballast
