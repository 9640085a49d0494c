// Looks at the inputs of linear layers while a model runs: how calibration gets its statistics.
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
};

}  // namespace ballast::nn
