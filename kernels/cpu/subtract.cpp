#include "kernels/ops/subtract.h"

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

void CpuBackend::run(const Subtract& op) {
  op.check();
  const int64_t width = op.y.shape[1];
  pool_.parallel(op.y.shape[0], [&](int, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float *a = op.a.row(t), *b = op.b.row(t);
      float* y = op.y.row(t);
      for (int64_t i = 0; i < width; ++i) y[i] = a[i] - b[i];
    }
  });
}

}  // namespace ballast
