#include "engine/nn/linear.h"

#include <numeric>

#include "engine/nn/embedding.h"
#include "engine/nn/tape.h"

namespace ballast::nn {
namespace {

// The weight as f32 [out_features, in_features], in the workspace: every encoding can be looked up row by row.
OutputView decoded(const ForwardContext& context, const Weight& weight) {
  std::vector<int32_t> rows(size_t(weight.out_features()));
  std::iota(rows.begin(), rows.end(), 0);
  const OutputView ids = context.workspace.tensor(DType::i32, {weight.out_features()});
  context.backend.copy_to_device(ids.as<void>(), rows.data(), ids.bytes());
  const OutputView out = context.workspace.floats({weight.out_features(), weight.in_features()});
  embed(context, weight, ids, out);
  return out;
}

}  // namespace

void Linear::run(const ForwardContext& context, const TensorView& x, const OutputView& y, const Epilogue& epilogue,
                 const std::optional<ActivationGrid>& grid) const {
  weight.visit([&]<class View>(const View& view) {
    context.backend.run(ballast::Linear<View>{.x = x,
                                              .weight = view,
                                              .grid = grid,
                                              .bias = bias.view(),
                                              .position_bias = position_bias.view(),
                                              .positions = context.batch.positions,
                                              .activation = epilogue.activation,
                                              .residual = epilogue.residual,
                                              .y = y});
  });
}

void Linear::forward(const ForwardContext& context, const TensorView& x, const OutputView& y,
                     const Epilogue& epilogue) const {
  if (!context.tape) return run(context, x, y, epilogue, input_grid);
  const TensorView read = rounded(context, input_grid, x);
  run(context, read, y, epilogue, std::nullopt);
  CHECK(!epilogue.residual || (epilogue.residual.data == y.data && epilogue.activation == Activation::none),
        "no way back through this epilogue");
  context.tape->record([this, read, y, activation = epilogue.activation](const ForwardContext& back) {
    backward(back, read, y, activation);
  });
}

void Linear::backward(const ForwardContext& context, const TensorView& x, const TensorView& y,
                      Activation activation) const {
  const OutputView dz = context.tape->gradient(context, y), dx = context.tape->gradient(context, x);
  const Workspace::Scope scope(context.workspace);
  if (activation != Activation::none) {
    TensorView z = y;
    if (activation != Activation::relu) {
      const OutputView again = context.workspace.floats(y.shape);
      run(context, x, again, {}, std::nullopt);
      z = again;
    }
    context.backend.run(ActivationBackward{.activation = activation, .z = z, .dy = dz});
  }
  if (context.observer) context.observer->gradient(*this, x, dz);
  context.backend.run(RankUpdate{.e = dz, .u = decoded(context, weight), .w = dx, .add = true});
}

}  // namespace ballast::nn
