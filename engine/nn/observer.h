// Looks at the inputs of linear layers while a model runs, and at their gradients on the way back: how
// calibration gets its statistics.
#pragma once

#include "kernels/view.h"

namespace ballast::nn {

class Linear;

class Observer {
 public:
  virtual ~Observer() = default;
  /// `x`: f32 [tokens, in_features], about to be read by `layer` (and by the layers that share its input,
  /// such as k and v beside q). Valid during the call.
  virtual void input(const Linear& layer, const TensorView& x) = 0;
  /// On the way back (see tape.h), for every layer: `dz` f32 [tokens, out_features] is the gradient of the loss
  /// by z = x·Wᵀ + b, so that dW = dzᵀ·x and db = Σ_t dz[t]. Valid during the call.
  virtual void gradient([[maybe_unused]] const Linear& layer, [[maybe_unused]] const TensorView& x,
                        [[maybe_unused]] const TensorView& dz) {}
};

}  // namespace ballast::nn
