// y = (x − mean(x)) / sqrt(var(x) + epsilon) · weight + bias, per token; the variance is the biased one.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct LayerNorm {
  TensorView x;       ///< f32 [tokens, hidden]
  TensorView weight;  ///< f32 [hidden], or empty for 1
  TensorView bias;    ///< f32 [hidden], or empty for 0
  float epsilon = 1e-5f;
  OutputView y;  ///< f32 [tokens, hidden]; may be x

  void check() const {
    DimChecker dims("layernorm");
    dims.match(x, "x", {"tokens", "hidden"});
    dims.match(y, "y", {"tokens", "hidden"});
    dims.dtype(x, "x", {DType::f32});
    dims.dtype(y, "y", {DType::f32});
    if (weight) dims.match(weight, "weight", {"hidden"});
    if (bias) dims.match(bias, "bias", {"hidden"});
  }
};

/// With x̂ = (x − mean(x))/σ, σ = sqrt(var(x) + epsilon) and g = dy · weight, per token:
///   dx (+)= (g − mean(g) − x̂ · mean(g · x̂)) / σ
struct LayerNormBackward {
  TensorView x;       ///< f32 [tokens, hidden], as the forward pass read it
  TensorView weight;  ///< f32 [hidden], or empty for 1
  float epsilon = 1e-5f;
  TensorView dy;            ///< f32 [tokens, hidden]
  bool accumulate = false;  ///< add to dx
  OutputView dx;            ///< f32 [tokens, hidden]; may be dy when not accumulating

  void check() const {
    DimChecker dims("layernorm_backward");
    dims.match(x, "x", {"tokens", "hidden"});
    dims.match(dy, "dy", {"tokens", "hidden"});
    dims.match(dx, "dx", {"tokens", "hidden"});
    for (const TensorView* view : {&x, &dy, static_cast<const TensorView*>(&dx)})
      dims.dtype(*view, "x, dy, dx", {DType::f32});
    if (weight) dims.match(weight, "weight", {"hidden"});
    CHECK(!accumulate || dx.data != dy.data, "layernorm_backward: dx added to dy itself");
  }
};

}  // namespace ballast
