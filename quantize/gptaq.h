// GPTAQ (arXiv 2504.02692, §3.3): error feedback that also makes up for inputs that have drifted.
//
// With x_f the float model's input and x the quantized one's, column i of the walk leaves behind not only its rounding
// error e_i but also w_i·(x_f − x)_i, w_i being its weight just before it is rounded. Both go to the columns behind it by
// least squares:
//
//   w_j −= e_i·U_ij,   w_j += w_i·P_ij   for j > i
//   P = α · triu₁((G − H)·Uᵀ)·U,   G = E[x_f xᵀ],  H = E[x xᵀ],   that is P_i,>i = α·(G − H)_i,>i·(H_>i,>i)⁻¹
//
// α is 1 in the paper and 0.25 in its code. w_i depends on all earlier columns, but linearly: for a row v of W the walk
// makes w·(I − P) = v − e·triu₁(U). So it is GPTQ's own walk for other numbers,
//
//   W·(I − P)⁻¹ in place of W   and   triu₁(U)·(I − P)⁻¹ in place of triu₁(U),
//
// with the diagonal of U as it is, and no column solver needs to know. Differs from the paper where grids are fitted: on
// these weights, which hold what drift will add to a column before its turn comes, instead of W (static grids) or the
// weights of the moment (dynamic groups).
//
// Asymmetric targets (target.h) minimize the same E‖W·x_f − Q·x‖², but take the whole correction, W·(G − H)·(H + λI)⁻¹,
// before the walk begins: it spreads over all columns, where P gives column i's share only to those behind it. Walking
// with P towards such a target would count G − H twice, so a recipe has one or the other; and as P belongs to the second
// moment of the inputs, it goes with no other curvature, nor with sweeps, whose objective knows nothing of it.
#pragma once

#include <span>
#include <vector>

#include "quantize/target.h"

namespace ballast {

/// For the layers that share one input.
class DriftFeedback {
 public:
  /// `factor`: of H + λI. Of `drift` only G − H is used.
  DriftFeedback(Backend& backend, const DriftMoments& drift, const InverseFactor& factor, double alpha);

  /// The factor to walk with.
  const InverseFactor& factor() const { return factor_; }
  /// W·(I − P)⁻¹, f32 [out_features, in_features], columns in the original order.
  std::vector<float> target(Backend& backend, std::span<const float> weight) const;

 private:
  std::vector<float> p_;  ///< [size, size], strictly upper, in solver order
  InverseFactor factor_;
};

}  // namespace ballast
