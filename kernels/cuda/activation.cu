#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a block owns a token, a thread every 256th value.
struct ActivationSlopes {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float* z;
    float* dy;
    int64_t z_stride, dy_stride;
    int width;
    Activation activation;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const float* z = args.z + dev::block() * args.z_stride;
    float* dy = args.dy + dev::block() * args.dy_stride;
    for (int i = dev::thread(); i < args.width; i += kThreads)
      dy[i] = args.activation == Activation::gelu ? dy[i] * gelu_slope(z[i]) : z[i] > 0 ? dy[i] : 0.0f;
  }

 private:
  // d/dz of z·Φ(z): Φ(z) + z·φ(z).
  static BALLAST_DEVICE float gelu_slope(float z) {
    constexpr float kRootHalf = 0.70710678118654752f, kInverseRootTwoPi = 0.39894228040143268f;
    return 0.5f * (1.0f + dev::erf(z * kRootHalf)) + z * kInverseRootTwoPi * dev::exp(-0.5f * z * z);
  }
};

}  // namespace

void CudaBackend::run(const ActivationBackward& op) {
  op.check();
  forget_input();
  if (op.activation == Activation::none || op.z.shape.elements() == 0) return;
  const Staged z(machine_, stages_[0], op.z), dy(machine_, stages_[1], op.dy);
  launch<ActivationSlopes>(machine_, {.blocks = op.z.shape[0]},
                           {.z = z.as<float>(),
                            .dy = dy.as<float>(),
                            .z_stride = z.stride(),
                            .dy_stride = dy.stride(),
                            .width = int(op.z.shape[1]),
                            .activation = op.activation});
  dy.put_back();
}

}  // namespace ballast
