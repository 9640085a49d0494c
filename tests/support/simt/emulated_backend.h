// The CUDA backend on the block emulator, and what its sums may be off by.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "kernels/cuda/cuda_backend.h"
#include "tests/support/linear_ops.h"
#include "tests/support/simt/block_emulator.h"

namespace ballast::test {

inline std::unique_ptr<Backend> emulated_backend(const std::string& activations = "f32",
                                                 bool deterministic = false) {
  return make_cuda_backend(
      {.device = "cuda", .threads = 1, .activations = activations, .deterministic = deterministic});
}

/// Largest relative error of one rounding to f16 or bf16.
inline double half_rounding(const std::string& activations) {
  return activations == "bf16" ? 0x1p-8 : 0x1p-11;
}

/// Codes times x rounded to 16 bits. Rounding moves each product by half_rounding, or 2^-25 where x is below the smallest
/// normal f16. The sums of a chunk of at most 128 columns are eight steps of f32, each of which a tensor core may round a
/// few times, on sizes that count the code, its offset (at most 128, at 2 bits) and the zero point; then come a few roundings
/// for each chunk and each piece of stream-K.
/// `rounding`: largest relative error of x; 0 where the reference takes the rounded x, too.
inline SumBound fragments_bound(const AffineMatrix& matrix, double rounding) {
  return [&matrix, rounding](const float* x, const float* w, int64_t in_features, int64_t row) {
    double of_x = 0, sizes = 0;
    const double offset = matrix.bits == 2 ? 128 : 0;
    for (int64_t k = 0; k < in_features; ++k) {
      const int64_t group = k / matrix.group_size;
      const double scale = matrix.scale(row, group);
      of_x += std::abs(double(w[k])) * (rounding * std::abs(double(x[k])) + 0x1p-25);
      sizes += scale * std::abs(double(x[k])) *
               (matrix.codes[size_t(row * in_features + k)] + offset + double(matrix.zero(row, group)));
    }
    const double chunks = double(in_features) / double(std::min<int64_t>(matrix.group_size, 128));
    return of_x + (4 * 8 + 2 * chunks + 8) * kRound32 * (sizes + of_x);
  };
}

inline SumBound fragments_bound(const AffineMatrix& matrix, const std::string& activations = "f32") {
  return fragments_bound(matrix, half_rounding(activations));
}

/// The same with real zero points, and outliers: code 0 lies under them, and each adds value + scale · zero point in steps
/// of f32.
inline SumBound fragments_bound(const SparseOutlierMatrix& matrix, const std::string& activations = "f32") {
  const double rounding = half_rounding(activations);
  return [&matrix, rounding](const float* x, const float* w, int64_t in_features, int64_t row) {
    double of_x = 0, sizes = 0;
    for (int64_t k = 0; k < in_features; ++k) {
      const int64_t group = k / matrix.group_size;
      const double scale = std::abs(double(matrix.scale(row, group))),
                   zero = std::abs(double(matrix.zero(row, group)));
      const double offset = matrix.bits == 2 ? 128 : 0, codes = double((1 << matrix.bits) - 1);
      of_x += std::abs(double(w[k])) * (rounding * std::abs(double(x[k])) + 0x1p-25);
      sizes += std::abs(double(x[k])) * (scale * (codes + offset + 3 * zero) + 2 * std::abs(double(w[k])));
    }
    const double outliers = matrix.outlier_rows[size_t(row) + 1] - matrix.outlier_rows[size_t(row)];
    const double chunks = double(in_features) / double(std::min<int64_t>(matrix.group_size, 128));
    return of_x + (4 * 8 + 2 * chunks + outliers + 8) * kRound32 * (sizes + of_x);
  };
}

}  // namespace ballast::test
