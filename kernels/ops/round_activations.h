// y = x̂: every value rounded to its grid (encodings/activation.h).
#pragma once

#include "kernels/encodings/activation.h"
#include "kernels/view.h"

namespace ballast {

struct RoundActivations {
  TensorView x;  ///< f32 [tokens, width]
  ActivationGrid grid;
  OutputView y;  ///< f32 [tokens, width]; may be x

  void check() const {
    DimChecker dims("round_activations");
    dims.match(x, "x", {"tokens", "width"});
    dims.match(y, "y", {"tokens", "width"});
    dims.dtype(x, "x", {DType::f32});
    dims.dtype(y, "y", {DType::f32});
  }
};

}  // namespace ballast
