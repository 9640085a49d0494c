// Asymmetric targets: what a layer should compute when its input has drifted.
//
// The layer must reproduce W·x_f (the float model's output) from x_q (the input that the quantized prefix
// makes). Up to a constant, E‖W·x_f − Q·x_q‖² is the ordinary objective for the weight
//
//   W' = W + W·(G − H)·(H + λI)⁻¹,   G = E[x_f x_qᵀ],  H = E[x_q x_qᵀ]
//
// A layer that adds to the residual stream h can take back what has gone wrong there as well: its target is
// W·x_f + h_f − h_q, so that W' gains E[(h_f − h_q) x_qᵀ]·(H + λI)⁻¹.
//
// With centred moments and drift-corrected biases this is the least-squares correction of weight and bias
// together (ridge regression of the float output on [x_q, 1]). Related: Qronos and GPTAQ (gptaq.h), which spread
// the same correction over the columns.
#pragma once

#include <span>
#include <vector>

#include "engine/core/sums.h"
#include "engine/core/workspace.h"
#include "quantize/column_solver.h"
#include "quantize/statistics.h"

namespace ballast {

/// Moments of one shared input in the two streams, over the same tokens.
struct InputMoments {
  Statistics quantized;  ///< of x_q, with second moment
  Statistics reference;  ///< of x_f, means only; its count is 0 when no reference stream is kept
  /// f32 [features, features], Σ (x_f − x_q) x_qᵀ; empty when not wanted. The differences are summed, not the
  /// difference of two sums taken: f32 is enough.
  std::vector<float> drift;
  /// For a layer that adds to the residual stream: f32 [hidden, features], Σ (h_f − h_q) x_qᵀ; else empty.
  std::vector<float> residual;
  std::vector<double> residual_sum;    ///< f64 [hidden], Σ h_f − h_q
  std::vector<double> residual_first;  ///< the same over the first tokens of samples
  Sums<float> drift_there, residual_there;  ///< where the two grow

  /// Behind the last addition.
  void settle(Backend& backend) {
    quantized.settle(backend);
    drift_there.settle(backend, drift);
    residual_there.settle(backend, residual);
  }
  bool has_reference() const { return reference.count > 0; }
};

struct DriftMoments {
  std::vector<float> input;     ///< G − H, [features, features]
  std::vector<float> residual;  ///< E[(h_f − h_q) x_qᵀ], [out_features, features], or empty
};
/// Of the centred moments when `centred`. Takes `drift` and `residual` out of the moments.
DriftMoments drift_moments(InputMoments& moments, bool centred);

/// sums[i] += weight · Σ (here_float − here)[i] over tokens, for f32 [tokens, width] of both streams.
void add_lost(Backend& backend, const TensorView& here, const TensorView& here_float, double weight,
              std::vector<double>& sums);
/// sums += Σ (here_float − here)·xᵀ for f32 [tokens, features] x and [tokens, width] of both streams; `sums` is f32
/// [width, features] on the backend's device. Some tokens at a time: the differences need no room to speak of.
void add_drift(Backend& backend, Workspace& workspace, const TensorView& x, const TensorView& here,
               const TensorView& here_float, float* sums);

/// f32 [rows / every · times, width]: every so-manieth row from the first on, each so many times.
OutputView repeated_rows(Backend& backend, Workspace& workspace, const TensorView& rows, int64_t every, int64_t times);

/// W' for one layer of the shared input. `factor`: of H, which also sets λ. Dead columns keep their weights.
std::vector<float> asymmetric_target(Backend& backend, std::span<const float> weight,
                                     const DriftMoments& drift, const InverseFactor& factor);

/// rows · (H + λI)⁻¹ for f32 [count, size], both in solver order. `ahead`: rows[i, >i] · ((H + λI)_>i,>i)⁻¹ for row i,
/// zeros up to column i.
std::vector<float> times_inverse(Backend& backend, std::span<const float> rows, const InverseFactor& factor,
                                 bool ahead = false);

}  // namespace ballast
