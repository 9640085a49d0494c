// Layer normalization; weight and bias may be absent (layer_norm_elementwise_affine false).
#pragma once

#include <string>

#include "engine/nn/context.h"

namespace ballast::nn {

class LayerNorm {
 public:
  std::string name;  ///< Hugging Face module name
  Tensor weight;     ///< f32 [hidden], or empty
  Tensor bias;       ///< f32 [hidden], or empty
  float epsilon = 1e-5f;

  /// y may be x.
  void forward(const ForwardContext& context, const TensorView& x, const OutputView& y) const;
};

}  // namespace ballast::nn
