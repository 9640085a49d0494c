#include "kernels/ops/layernorm.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"

namespace ballast {
namespace {

// Work partition: a block owns a token, a thread every 256th value, which nobody else reads or writes, so y may be x.
struct NormalizeRow {
  static constexpr int kThreads = 256, kBlocks = 4;
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
    float sum = 0;
    for (int i = dev::thread(); i < args.hidden; i += kThreads) sum += x[i];
    const float mean = dev::block_sum(sum, s_partial) / float(args.hidden);
    float squares = 0;
    for (int i = dev::thread(); i < args.hidden; i += kThreads)
      squares = dev::fma(x[i] - mean, x[i] - mean, squares);
    const float variance = dev::block_sum(squares, s_partial) / float(args.hidden);
    const float inverse = 1.0f / dev::sqrt(variance + args.epsilon);
    for (int i = dev::thread(); i < args.hidden; i += kThreads) {
      float value = (x[i] - mean) * inverse;
      if (args.weight) value *= args.weight[i];
      y[i] = args.bias ? value + args.bias[i] : value;
    }
  }
};

}  // namespace

void CudaBackend::run(const LayerNorm& op) {
  op.check();
  forget_input();
  if (op.x.shape[0] == 0) return;
  cuda::launch<NormalizeRow>(
      machine_, {.blocks = op.x.shape[0], .shared_bytes = NormalizeRow::kThreads / dev::kWarp * 4},
      {.x = op.x.as<float>(),
       .weight = op.weight ? op.weight.as<float>() : nullptr,
       .bias = op.bias ? op.bias.as<float>() : nullptr,
       .y = op.y.as<float>(),
       .x_stride = op.x.strides[0],
       .y_stride = op.y.strides[0],
       .hidden = int(op.x.shape[1]),
       .epsilon = op.epsilon});
}

}  // namespace ballast
