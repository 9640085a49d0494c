#include "kernels/ops/layernorm.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using cuda::launch;
using cuda::Staged;

namespace {

constexpr int kRowThreads = 256;

struct RowMoments {
  float mean, inverse;  ///< inverse: 1 / sqrt(variance + epsilon)
};
// By all threads of a block.
BALLAST_DEVICE RowMoments row_moments(const float* x, int hidden, float epsilon,
                                      dev::Shared<float> s_partial) {
  float sum = 0;
  for (int i = dev::thread(); i < hidden; i += kRowThreads) sum += x[i];
  const float mean = dev::block_sum(sum, s_partial) / float(hidden);
  float squares = 0;
  for (int i = dev::thread(); i < hidden; i += kRowThreads)
    squares = dev::fma(x[i] - mean, x[i] - mean, squares);
  return {mean, 1.0f / dev::sqrt(dev::block_sum(squares, s_partial) / float(hidden) + epsilon)};
}

// Work partition: a block owns a token, a thread every 256th value, which nobody else reads or writes, so y may be x.
struct NormalizeRow {
  static constexpr int kThreads = kRowThreads, kBlocks = 4;
  struct Args {
    const float* x;
    const float* weight;
    const float* bias;
    float* y;
    int64_t x_stride, y_stride;
    int hidden;
    float epsilon;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_partial = arena.take<float>(kThreads / dev::kWarp);
    const float* x = args.x + int64_t(dev::block()) * args.x_stride;
    float* y = args.y + int64_t(dev::block()) * args.y_stride;
    const auto [mean, inverse] = row_moments(x, args.hidden, args.epsilon, s_partial);
    for (int i = dev::thread(); i < args.hidden; i += kThreads) {
      float value = (x[i] - mean) * inverse;
      if (args.weight) value *= args.weight[i];
      y[i] = args.bias ? value + args.bias[i] : value;
    }
  }
};

// The same work partition; dx may be dy.
struct NormalizeRowBackward {
  static constexpr int kThreads = kRowThreads, kBlocks = 4;
  struct Args {
    const float *x, *weight, *dy;
    float* dx;
    int64_t x_stride, dy_stride, dx_stride;
    int hidden;
    float epsilon;
    bool accumulate;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_partial = arena.take<float>(kThreads / dev::kWarp);
    const float* x = args.x + int64_t(dev::block()) * args.x_stride;
    const float* dy = args.dy + int64_t(dev::block()) * args.dy_stride;
    float* dx = args.dx + int64_t(dev::block()) * args.dx_stride;
    const float hidden = float(args.hidden);
    const auto [mean, inverse] = row_moments(x, args.hidden, args.epsilon, s_partial);
    float total = 0, dot = 0;
    for (int i = dev::thread(); i < args.hidden; i += kThreads) {
      const float g = args.weight ? dy[i] * args.weight[i] : dy[i];
      total += g;
      dot = dev::fma(g, (x[i] - mean) * inverse, dot);
    }
    const float mean_g = dev::block_sum(total, s_partial) / hidden;
    const float mean_dot = dev::block_sum(dot, s_partial) / hidden;
    for (int i = dev::thread(); i < args.hidden; i += kThreads) {
      const float g = args.weight ? dy[i] * args.weight[i] : dy[i];
      const float value = ((g - mean_g) - (x[i] - mean) * inverse * mean_dot) * inverse;
      dx[i] = args.accumulate ? dx[i] + value : value;
    }
  }
};

}  // namespace

void CudaBackend::run(const LayerNormBackward& op) {
  op.check();
  forget_input();
  if (op.x.shape.elements() == 0) return;
  const Staged x(machine_, stages_[0], op.x), dy(machine_, stages_[1], op.dy),
      dx(machine_, stages_[2], op.dx, op.accumulate), weight(machine_, stages_[3], op.weight);
  launch<NormalizeRowBackward>(
      machine_, {.blocks = op.x.shape[0], .shared_bytes = NormalizeRow::kThreads / dev::kWarp * 4},
      {.x = x.as<float>(),
       .weight = weight.as<float>(),
       .dy = dy.as<float>(),
       .dx = dx.as<float>(),
       .x_stride = x.stride(),
       .dy_stride = dy.stride(),
       .dx_stride = dx.stride(),
       .hidden = int(op.x.shape[1]),
       .epsilon = op.epsilon,
       .accumulate = op.accumulate});
  dx.put_back();
}

void CudaBackend::run(const LayerNorm& op) {
  op.check();
  forget_input();
  if (op.x.shape[0] == 0) return;
  const Staged x(machine_, stages_[0], op.x), y(machine_, stages_[1], op.y, false),
      weight(machine_, stages_[2], op.weight), bias(machine_, stages_[3], op.bias);
  cuda::launch<NormalizeRow>(
      machine_, {.blocks = op.x.shape[0], .shared_bytes = NormalizeRow::kThreads / dev::kWarp * 4},
      {.x = x.as<float>(),
       .weight = weight.as<float>(),
       .bias = bias.as<float>(),
       .y = y.as<float>(),
       .x_stride = x.stride(),
       .y_stride = y.stride(),
       .hidden = int(op.x.shape[1]),
       .epsilon = op.epsilon});
  y.put_back();
}

}  // namespace ballast
