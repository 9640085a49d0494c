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

}  // namespace ballast
