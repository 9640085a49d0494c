// Curvature from gradients of the end loss, gathered by passes through the end of the model and back.
//
// With dz the gradient of the loss by a layer's outputs and one sample per pass:
//   output-adaptive (OAC, arXiv 2405.15025)       H = 1/N · Σ_i G_iᵀ·G_i,  G_i = dzᵀ·x = dW of sample i
//   guided (GuidedQuant, arXiv 2505.07004)        H_k = 1/n · Σ_t s_k[t] · x_t·x_tᵀ,
//                                                 s_k[t] = mean over rows j of group k of dz[t][j]²
// The bias is one more weight on a constant input 1, so both are gathered for x extended by that 1: its row and
// column give the centred form (the best bias taken out) as they do for second moments.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "quantize/calibration.h"
#include "quantize/curvature.h"

namespace ballast {

struct GradientKinds {
  bool output_adaptive = false;
  int64_t guided_groups = 0;  ///< equal runs of output rows with a curvature of their own; 0: not guided
};

/// Quadratic form of the loss in one row of the weight and its bias.
struct ExtendedMoment {
  int64_t features = 0;
  std::vector<double>
      sum;             ///< [features + 1, features + 1], symmetric; the last row belongs to the constant 1
  int64_t count = 0;   ///< what it is the sum over: samples (output-adaptive) or tokens (guided)
  Sums<double> there;  ///< where `sum` grows

  /// The input whose output error a bias takes out best: the shift of bias r is (W − Q)[r] · mean(). Plays the
  /// part of E[x]. Zeros where the loss does not depend on the bias but for rounding.
  std::vector<double> mean() const;
  /// sum / count, or what is left of it when the bias is free (Schur complement) when centred. A form that is
  /// zero everywhere but for rounding (outputs without influence on the loss, or a bias that does it all) becomes the
  /// identity: plain rounding.
  Curvature curvature(bool centred) const;
};

struct LayerGradients {
  std::string name;
  int64_t out_features = 0;
  ExtendedMoment output_adaptive;      ///< count 0 when not wanted
  std::vector<ExtendedMoment> guided;  ///< one per group

  /// Rows of guided[group]: [first_row(group), first_row(group + 1)).
  int64_t first_row(int64_t group) const { return group * out_features / int64_t(guided.size()); }
};

struct GradientRequest {
  Backend& backend;
  nn::Model& model;
  HiddenStream& stream;  ///< at the input of block `first`; left as it is
  int64_t first = 0;     ///< facts().layers: the head alone
  /// Stands in for model.block(first), say half quantized; null for that block itself. Blocks behind it come from
  /// the model and stay loaded.
  nn::Block* block = nullptr;
  int64_t observed =
      1;  ///< blocks to gather for, from the first: 1, or facts().layers from the start of a float
          ///< model, which takes one pass in all but memory for every layer's statistics
  bool head = false;  ///< gather for the head's last layer, too
  GradientKinds kinds;
};

struct GradientStatistics {
  double loss = 0;  ///< −log p(next token), mean over the calibration tokens that have one
  std::vector<LayerGradients>
      layers;  ///< in the order of the observed blocks' branches: expand, contract; head

  /// Null when it was not observed.
  const LayerGradients* find(const std::string& name) const;
};

/// One pass over all samples of the stream. The loss is the sum of −log p(next token) of each sample, or of an image's
/// −log p(likeliest class).
GradientStatistics gather_gradients(const GradientRequest& request);

}  // namespace ballast
