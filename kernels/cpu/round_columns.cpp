#include "kernels/ops/round_columns.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strips.h"
#include "kernels/cpu/tiles.h"

namespace ballast {

void CpuBackend::run(const RoundColumns& op) {
  op.check();
  const int64_t rows = op.w.shape[0], width = op.w.shape[1];
  ColumnTask task{};
  task.w_stride = op.w.strides[0];
  task.width = width;
  float* const u = blocks_.floats((width + kColumnGroup - 1) / kColumnGroup * kColumnGroup * width);
  for (int64_t first = 0; first < width; first += kColumnGroup)
    fill_strip(op.u.as<float>(), op.u.strides[0], width, first, std::min(kColumnGroup, width - first),
               kColumnGroup, u + first * width);
  task.u = u;
  task.groups = op.groups.as<int32_t>();
  CHECK(op.scales.strides[0] == op.zeros.strides[0]);
  task.group_stride = op.scales.strides[0];
  task.code_stride = op.codes.strides[0];
  task.max_code = float(op.max_code);
  pool_.parallel(tile_count(rows), [&](int thread, int64_t first, int64_t last) {
    ColumnTask mine = task;
    mine.scratch = thread_scratch(thread, 2 * width * kTileRows);
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row = tile * kTileRows;
      mine.rows = std::min(kTileRows, rows - row);
      mine.w = op.w.row(row);
      mine.scales = op.scales.as<float>() + row;
      mine.zeros = op.zeros.as<float>() + row;
      mine.codes = op.codes.as<uint8_t>() + row * task.code_stride;
      kernels_.round_columns(mine);
    }
  });
}

}  // namespace ballast
