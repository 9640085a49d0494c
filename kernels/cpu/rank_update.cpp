#include "kernels/ops/rank_update.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strips.h"

namespace ballast {

void CpuBackend::run(const RankUpdate& op) {
  op.check();
  const int64_t rows = op.e.shape[0], rank = op.e.shape[1], columns = op.u.shape[1];
  if (rows == 0 || rank == 0 || columns == 0) return;
  const int64_t lanes = kernels_.float_strip, strips = (columns + lanes - 1) / lanes;
  float* const packed = tiles_.floats(strips * rank * lanes);
  pool_.parallel(strips, [&](int, int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip)
      fill_strip(op.u.as<float>(), op.u.strides[0], rank, strip * lanes,
                 std::min(lanes, columns - strip * lanes), lanes, packed + strip * rank * lanes);
  });
  const UpdateTask<float> task{.a_stride = op.e.strides[0],
                               .rank = rank,
                               .add = op.add,
                               .diagonal = -rows,
                               .out_stride = op.w.strides[0]};
  // Work items: some rows by all columns, or by a share of them where rows are few.
  const int64_t row_items = (rows + kUpdateRows - 1) / kUpdateRows;
  const int64_t parts = row_items >= pool_.threads() ? 1 : std::min<int64_t>(strips, pool_.threads());
  pool_.deal(row_items * parts, [&](int thread, int64_t item) {
    UpdateTask<float> mine = task;
    mine.scratch = thread_scratch(thread, kUpdateScratch<float>);
    const int64_t row = item / parts * kUpdateRows, part = item % parts;
    const int64_t first = part * strips / parts, last = (part + 1) * strips / parts;
    mine.rows = std::min(kUpdateRows, rows - row);
    mine.columns = std::min(columns, last * lanes) - first * lanes;
    mine.a = op.e.row(row);
    mine.b = packed + first * rank * lanes;
    mine.out = op.w.row(row) + first * lanes;
    kernels_.update_f32(mine);
  });
}

}  // namespace ballast
