#include "engine/nn/layernorm.h"

#include "engine/nn/tape.h"

namespace ballast::nn {

void LayerNorm::forward(const ForwardContext& context, const TensorView& x, const OutputView& y) const {
  // x is the residual stream, which moves on in place.
  if (context.tape) {
    const TensorView kept = context.tape->copy(context, x);
    context.tape->record([this, kept, x, y](const ForwardContext& back) {
      const OutputView dx = back.tape->gradient(back, x);
      back.backend.run(LayerNormBackward{.x = kept,
                                         .weight = weight.view(),
                                         .epsilon = epsilon,
                                         .dy = back.tape->gradient(back, y),
                                         .accumulate = x.data != y.data,
                                         .dx = dx});
    });
  }
  context.backend.run(
      ballast::LayerNorm{.x = x, .weight = weight.view(), .bias = bias.view(), .epsilon = epsilon, .y = y});
}

}  // namespace ballast::nn
