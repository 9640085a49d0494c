#include "kernels/ops/subtract.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a block owns a token, a thread every 256th value.
struct SubtractRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float *a, *b;
    float* y;
    int64_t a_stride, b_stride, y_stride;
    int width;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int64_t token = dev::block();
    for (int i = dev::thread(); i < args.width; i += kThreads)
      args.y[token * args.y_stride + i] =
          args.a[token * args.a_stride + i] - args.b[token * args.b_stride + i];
  }
};

}  // namespace

void CudaBackend::run(const Subtract& op) {
  op.check();
  forget_input();
  if (op.y.shape.elements() == 0) return;
  const Staged a(machine_, stages_[0], op.a), b(machine_, stages_[1], op.b),
      y(machine_, stages_[2], op.y, false);
  launch<SubtractRows>(machine_, {.blocks = op.y.shape[0]},
                       {.a = a.as<float>(),
                        .b = b.as<float>(),
                        .y = y.as<float>(),
                        .a_stride = a.stride(),
                        .b_stride = b.stride(),
                        .y_stride = y.stride(),
                        .width = int(op.y.shape[1])});
  y.put_back();
}

}  // namespace ballast
