#include "kernels/ops/layernorm.h"

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

void CpuBackend::run(const LayerNorm& op) {
  op.check();
  pool_.parallel(op.x.shape[0], [&](int, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      kernels_.layernorm(op.x.row(t), op.weight.as<float>(), op.bias.as<float>(), op.epsilon, op.x.shape[1],
                         op.y.row(t));
  });
}

void CpuBackend::run(const LayerNormBackward& op) {
  op.check();
  pool_.parallel(op.x.shape[0], [&](int, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      kernels_.layernorm_backward({.x = op.x.row(t),
                                   .weight = op.weight.as<float>(),
                                   .epsilon = op.epsilon,
                                   .hidden = op.x.shape[1],
                                   .dy = op.dy.row(t),
                                   .accumulate = op.accumulate,
                                   .dx = op.dx.row(t)});
  });
}

}  // namespace ballast
