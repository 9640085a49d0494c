#include "engine/nn/linear.h"

namespace ballast::nn {

void Linear::forward(const ForwardContext& context, const TensorView& x, const OutputView& y,
                     const Epilogue& epilogue) const {
  weight.visit([&]<class View>(const View& view) {
    context.backend.run(ballast::Linear<View>{.x = x,
                                        .weight = view,
                                        .bias = bias.view(),
                                        .position_bias = position_bias.view(),
                                        .positions = context.batch.positions,
                                        .activation = epilogue.activation,
                                        .residual = epilogue.residual,
                                        .y = y});
  });
}

}  // namespace ballast::nn
