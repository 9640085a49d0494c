#include "kernels/ops/round_activations.h"

#include "kernels/cuda/activation_grid.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a block owns a token, a thread every 256th value.
struct RoundRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float* x;
    float* y;
    int64_t x_stride, y_stride;
    int width;
    GridNumbers grid;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const float* x = args.x + dev::block() * args.x_stride;
    float* y = args.y + dev::block() * args.y_stride;
    for (int i = dev::thread(); i < args.width; i += kThreads) y[i] = args.grid.round(x[i]);
  }
};

}  // namespace

void CudaBackend::run(const RoundActivations& op) {
  op.check();
  forget_input();
  if (op.x.shape.elements() == 0) return;
  const Staged x(machine_, stages_[0], op.x), y(machine_, stages_[1], op.y, false);
  launch<RoundRows>(machine_, {.blocks = op.x.shape[0]},
                    {.x = x.as<float>(),
                     .y = y.as<float>(),
                     .x_stride = x.stride(),
                     .y_stride = y.stride(),
                     .width = int(op.x.shape[1]),
                     .grid = GridNumbers::of(op.grid)});
  y.put_back();
}

}  // namespace ballast
