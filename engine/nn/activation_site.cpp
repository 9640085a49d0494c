#include "engine/nn/activation_site.h"

#include "engine/nn/tape.h"

namespace ballast::nn {

TensorView rounded(const ForwardContext& context, const std::optional<ActivationGrid>& grid,
                   const TensorView& x) {
  if (!grid) return x;
  const TensorView copy = context.tape ? context.tape->copy(context, x) : context.workspace.floats(x.shape);
  const OutputView y(const_cast<void*>(copy.data), DType::f32, copy.shape, copy.device);
  context.backend.run(RoundActivations{.x = x, .grid = *grid, .y = y});
  return y;
}

}  // namespace ballast::nn
