#include "kernels/ops/column_sums.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

void CpuBackend::run(const ColumnSums& op) {
  op.check();
  const int64_t tokens = op.x.shape[0], width = op.x.shape[1];
  const auto* positions = op.positions.as<int32_t>();
  pool_.parallel(width, [&](int, int64_t begin, int64_t end) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = op.x.row(t);
      for (int64_t i = begin; i < end; ++i) op.sums[i] += double(row[i]);
      if (positions[t] >= op.position_count) continue;
      double* here = op.position_sums + positions[t] * width;
      for (int64_t i = begin; i < end; ++i) here[i] += double(row[i]);
    }
  });
  for (int64_t t = 0; t < tokens; ++t) *op.zeros += std::count(op.x.row(t), op.x.row(t) + width, 0.0f);
}

}  // namespace ballast
