#include "kernels/ops/rank_update.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/multiply_tiles.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

void CudaBackend::run(const RankUpdate& op) {
  op.check();
  forget_input();
  const int64_t rows = op.w.shape[0], columns = op.w.shape[1], rank = op.e.shape[1];
  if (rows == 0 || columns == 0 || rank == 0) return;
  const Staged e(machine_, stages_[0], op.e), u(machine_, stages_[1], op.u), w(machine_, stages_[2], op.w);
  multiply_tiles<MultiplyTiles<float, float, true, false>>(machine_, {.a = e.as<float>(),
                                                                      .b = u.as<float>(),
                                                                      .out = w.as<float>(),
                                                                      .a_stride = e.stride(),
                                                                      .b_stride = u.stride(),
                                                                      .out_stride = w.stride(),
                                                                      .rows = int(rows),
                                                                      .columns = int(columns),
                                                                      .inner = int(rank),
                                                                      .terms_at_once = int(rank),
                                                                      .sign = op.add ? 1 : -1,
                                                                      .add = true,
                                                                      .upper_a = false,
                                                                      .lowest = rows});
  w.put_back();
}

}  // namespace ballast
