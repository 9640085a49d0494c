#include "kernels/ops/rank_update.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strips.h"

namespace ballast {
namespace {

// Terms whose part of u is packed together. Each element's chain of terms goes on where it was.
constexpr int64_t kTermsAtOnce = 512;

}  // namespace

void CpuBackend::run(const RankUpdate& op) {
  op.check();
  const int64_t rows = op.e.shape[0], rank = op.e.shape[1], columns = op.u.shape[1];
  if (rows == 0 || columns == 0) return;
  const int64_t lanes = kernels_.float_strip, strips = (columns + lanes - 1) / lanes;
  // Work items: some rows by all columns, or by a share of them where rows are few.
  const int64_t row_items = (rows + kUpdateRows - 1) / kUpdateRows;
  const int64_t parts = row_items >= pool_.threads() ? 1 : std::min<int64_t>(strips, pool_.threads());
  for (int64_t term = 0; term < rank; term += kTermsAtOnce) {
    const int64_t terms = std::min(kTermsAtOnce, rank - term);
    float* const packed = tiles_.floats(strips * terms * lanes);
    pool_.parallel(strips, [&](int, int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; ++strip)
        fill_strip(op.u.row(term), op.u.strides[0], terms, strip * lanes,
                   std::min(lanes, columns - strip * lanes), lanes, packed + strip * terms * lanes);
    });
    pool_.deal(row_items * parts, [&](int thread, int64_t item) {
      const int64_t row = item / parts * kUpdateRows, part = item % parts;
      const int64_t first = part * strips / parts, last = (part + 1) * strips / parts;
      kernels_.update_f32({.a = op.e.row(row) + term,
                           .a_stride = op.e.strides[0],
                           .b = packed + first * terms * lanes,
                           .rank = terms,
                           .rows = std::min(kUpdateRows, rows - row),
                           .columns = std::min(columns, last * lanes) - first * lanes,
                           .add = op.add,
                           .fresh = false,
                           .diagonal = -rows,
                           .out = op.w.row(row) + first * lanes,
                           .out_stride = op.w.strides[0],
                           .scratch = thread_scratch(thread, kUpdateScratch<float>)});
    });
  }
}

}  // namespace ballast
