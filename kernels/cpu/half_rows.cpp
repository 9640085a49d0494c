#include "kernels/ops/half_rows.h"

#include "kernels/cpu/cpu_backend.h"

namespace ballast {

void CpuBackend::run(const StoreHalfRows& op) {
  op.check();
  const int64_t width = op.x.shape[1];
  pool_.parallel(op.x.shape[0], [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      op.scales.as<float>()[row] = kernels_.store_half_row(
          op.x.row(row), width, op.halves.as<uint16_t>() + row * op.halves.strides[0]);
  });
}

void CpuBackend::run(const LoadHalfRows& op) {
  op.check();
  const int64_t width = op.x.shape[1];
  pool_.parallel(op.x.shape[0], [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels_.load_half_row(op.halves.as<uint16_t>() + row * op.halves.strides[0],
                             op.scales.as<float>()[row], width, op.x.row(row));
  });
}

}  // namespace ballast
