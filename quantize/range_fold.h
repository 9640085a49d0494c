// Channels of a normalized input brought to one range, without changing what the model computes.
//
// Behind a LayerNorm some channels reach ten times as far as others, so one grid for all gives most of them few levels.
// RepQ-ViT (arXiv 2212.08254, §3.2) gives each channel its own scale and zero point and folds the difference to a common
// grid into the norm before and the layers behind:
//
//   x' = x / r − c,   γ' = γ / r,  β' = β / r − c,   W' = W · diag(r),   b' = b + W'·c
//
// with r_i the half range of channel i over the geometric mean of all, and c_i its middle.
#pragma once

#include <vector>

#include "engine/nn/branch.h"

namespace ballast {

struct RangeFold {
  std::vector<float> factor, shift;  ///< r and c, [features]; empty: none

  explicit operator bool() const { return !factor.empty(); }
};

/// For x, f32 [tokens, features]. `tail`: the share of a channel's values on either side that its range leaves out.
RangeFold fit_fold(const TensorView& x, double tail);

/// x' in place.
void fold_values(const RangeFold& fold, const OutputView& x);
/// A weight's columns times r: f32 [out_features, features] in place.
void fold_weight(const RangeFold& fold, std::vector<float>& weight);
/// Changes the branch's norm, which must come before, and its expand layers, which must be float. They get biases.
void fold_branch(Backend& backend, const RangeFold& fold, nn::Branch& branch);

}  // namespace ballast
