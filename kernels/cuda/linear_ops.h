// Parts of the linear ops that all encodings share.
#pragma once

#include "kernels/cuda/staged.h"

namespace ballast {

template <class Encoding>
cuda::Epilogue CudaBackend::epilogue(const Linear<Encoding>& op) {
  const auto or_null = [](const TensorView& view) { return view ? view.as<float>() : nullptr; };
  return {.bias = or_null(op.bias),
          .position_bias = or_null(op.position_bias),
          .positions = op.position_bias ? numbers(op.positions) : nullptr,
          .position_rows = op.position_bias ? op.position_bias.shape[0] : 0,
          .position_stride = op.position_bias ? op.position_bias.strides[0] : 0,
          .activation = int(op.activation),
          .residual = or_null(op.residual),
          .y = op.y.template as<float>(),
          .residual_stride = op.residual ? op.residual.strides[0] : 0,
          .y_stride = op.y.strides[0],
          .tokens = int(op.x.shape[0]),
          .out_features = int(op.weight.out_features)};
}

template <class Encoding>
Linear<Encoding> CudaBackend::with_input(const Linear<Encoding>& op) {
  Linear<Encoding> same = op;
  if (op.grid && op.x.shape.elements() > 0) {
    // The values that the codes stand for.
    const OutputView rounded(rounded_.of<float>(op.x.shape.elements()), DType::f32, op.x.shape, Device::cuda);
    run(RoundActivations{.x = op.x, .grid = *op.grid, .y = rounded});
    same.x = rounded;
    same.grid.reset();
    return same;
  }
  if (op.x.device == Device::cuda || op.x.shape[0] == 0) return same;
  const int64_t floats = (op.x.shape[0] - 1) * op.x.strides[0] + op.x.shape[1];
  same.x.data = from_host_.of<float>(floats);
  same.x.device = Device::cuda;
  forget_input();
  machine_.copy_in(const_cast<void*>(same.x.data), op.x.data, 4 * floats);
  return same;
}

template <class Encoding, class Body>
void CudaBackend::on_device(const Linear<Encoding>& any_op, Body&& body) {
  any_op.check();
  if (any_op.x.shape[0] == 0) return;
  using cuda::Staged;
  Linear<Encoding> op = with_input(any_op);
  const Staged y(machine_, stages_[2], op.y, false), residual(machine_, stages_[3], op.residual),
      bias(machine_, stages_[4], op.bias), position_bias(machine_, stages_[5], op.position_bias);
  op.y = y.view(), op.residual = residual.view(), op.bias = bias.view(),
  op.position_bias = position_bias.view();
  body(op);
  y.put_back();
}

template <class Encoding>
Linear<Encoding> CudaBackend::part_of(const Linear<Encoding>& op, int64_t first, int64_t count) {
  Linear<Encoding> part = op;
  part.x = op.x.rows(first, count);
  part.y = op.y.rows(first, count);
  if (op.position_bias) part.positions = op.positions.rows(first, count);
  if (op.residual) part.residual = op.residual.rows(first, count);
  return part;
}

}  // namespace ballast
