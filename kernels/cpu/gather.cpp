#include "kernels/ops/gather.h"

#include <cstring>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

void CpuBackend::run(const GatherRows& op) {
  op.check();
  for (int64_t i = 0; i < op.rows.shape[0]; ++i) {
    const int64_t row = op.rows.as<int32_t>()[i];
    CHECK(row >= 0 && row < op.x.shape[0], "gather: row ", row, " of ", op.x.shape[0]);
    std::memcpy(op.y.row(i), op.x.row(row), size_t(op.x.shape[1]) * sizeof(float));
  }
}

}  // namespace ballast
