#include "kernels/ops/embedding.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {

template <class Encoding>
void CpuBackend::run_embedding(const Embedding<Encoding>& op) {
  op.check();
  const TiledWeight table = tiles_of(op.table);
  pool_.parallel(op.ids.shape[0], [&](int, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      kernels_.decode_row(table, op.ids.template as<int32_t>()[t], op.accumulate, op.y.row(t));
  });
}

void CpuBackend::run(const Embedding<DenseView>& op) {
  run_embedding(op);
}
void CpuBackend::run(const Embedding<AffineView>& op) {
  run_embedding(op);
}
void CpuBackend::run(const Embedding<SparseOutlierView>& op) {
  run_embedding(op);
}
void CpuBackend::run(const Embedding<ResidualBinaryView>& op) {
  run_embedding(op);
}

}  // namespace ballast
