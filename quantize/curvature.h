// Curvature: the quadratic form that a method minimizes. A row d of W − Q costs d·H·dᵀ. Which estimate H is
// (second moment of the inputs, their covariance, gradients of the loss) is no concern of the methods.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/encodings/quantized_matrix.h"
#include "quantize/statistics.h"

namespace ballast {

struct Curvature {
  int64_t size = 0;
  std::vector<double> h;      ///< f64 [size, size], symmetric
  std::vector<uint8_t> dead;  ///< [size]: 1 where the input is always zero, so that its weights are free
  std::vector<double> mean;   ///< [size]: E[xxᵀ] = h + mean·meanᵀ; empty when h is not centred
};

/// E[xxᵀ] (GPTQ, arXiv 2210.17323, up to a factor), or the covariance E[xxᵀ] − E[x]E[x]ᵀ when centred. From
/// std::move(statistics) only the moment is taken: it becomes h in place.
Curvature activation_curvature(Statistics&& statistics, bool centred);
inline Curvature activation_curvature(const Statistics& statistics, bool centred) {
  return activation_curvature(Statistics(statistics), centred);
}

/// A symmetric matrix, of which only the diagonal and what is below it is read.
struct SymmetricView {
  const double* below;     ///< [size, size], row-major
  const double* diagonal;  ///< elements diagonal_stride apart
  int64_t diagonal_stride;
  int64_t size;
};
inline SymmetricView symmetric_view(const std::vector<double>& matrix, int64_t size) {
  return {matrix.data(), matrix.data(), size + 1, size};
}

/// target − Q, f32 [out_features, in_features]
std::vector<float> weight_error(Backend& backend, std::span<const float> target, const QuantizedMatrix& quantized);

/// tr(A·M·Aᵀ) for A f32 [rows, size]; products in f32, summed in f64. Row i of M belongs to column order[i] of A,
/// where an order is given.
double quadratic_form(Backend& backend, const SymmetricView& matrix, std::span<const float> a,
                      std::span<const int32_t> order = {});
/// ‖A·v‖² in f64
double squared_norm(Backend& backend, std::span<const float> a, const std::vector<double>& v);

/// In place, element (i, j) becomes (order[i], order[j]).
void permute_both(Backend& backend, std::vector<double>& matrix, std::span<const int32_t> order);
/// Elements above the diagonal from those below.
void mirror_below(Backend& backend, std::vector<double>& matrix, int64_t size);

}  // namespace ballast
