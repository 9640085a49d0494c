#include "kernels/cpu/round_activations.h"

#include <cmath>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

RoundTask round_task(const ActivationGrid& grid) {
  using Kind = ActivationGrid::Kind;
  RoundTask task{.kind = int(grid.kind), .step = grid.step, .inverse = 1.0f / grid.step};
  task.coarse_units = std::ldexp(1.0f, grid.shift);
  task.coarse_step = grid.step * task.coarse_units;
  task.coarse_inverse = 1.0f / task.coarse_step;
  const int half = grid.levels() / 2;
  if (grid.kind == Kind::affine) {
    task.low = float(-grid.zero_point);
    task.high = float(grid.levels() - 1 - grid.zero_point);
  } else {
    task.low = grid.kind == Kind::twin_sign ? float(-half) : 0.0f;
    task.high = float(half - 1);
  }
  task.last_code = grid.levels() - 1;
  task.per_octave = grid.per_octave;
  return task;
}

void CpuBackend::run(const RoundActivations& op) {
  op.check();
  const RoundTask task = round_task(op.grid);
  const int64_t width = op.x.shape[1];
  pool_.parallel(op.x.shape[0], [&](int, int64_t first, int64_t last) {
    RoundTask row = task;
    row.count = width;
    for (int64_t t = first; t < last; ++t) {
      row.x = op.x.row(t);
      row.y = op.y.row(t);
      kernels_.round_row(row);
    }
  });
}

}  // namespace ballast
