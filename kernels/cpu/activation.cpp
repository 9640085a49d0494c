#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

// d/dz of z·Φ(z): Φ(z) + z·φ(z).
float gelu_slope(float z) {
  constexpr float kRootHalf = 0.70710678118654752f, kInverseRootTwoPi = 0.39894228040143268f;
  return 0.5f * (1.0f + std::erf(z * kRootHalf)) + z * kInverseRootTwoPi * std::exp(-0.5f * z * z);
}

}  // namespace

void CpuBackend::run(const ActivationBackward& op) {
  op.check();
  if (op.activation == Activation::none) return;
  const int64_t width = op.z.shape[1];
  pool_.parallel(op.z.shape[0], [&](int, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const float* z = op.z.row(t);
      float* dy = op.dy.row(t);
      if (op.activation == Activation::relu) {
        for (int64_t i = 0; i < width; ++i) dy[i] = z[i] > 0 ? dy[i] : 0;
      } else {
        for (int64_t i = 0; i < width; ++i) dy[i] *= gelu_slope(z[i]);
      }
    }
  });
}

}  // namespace ballast
