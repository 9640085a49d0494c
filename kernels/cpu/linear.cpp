#include "kernels/ops/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

// Below this many multiply-adds a second thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 15;

}  // namespace

void CpuBackend::pack_blocks(const float* x, int64_t tokens, int64_t features, int64_t token_stride,
                             int64_t k_stride, float sign, float* x_blocks) {
  const TokenBlocks task{x, tokens, features, token_stride, k_stride, sign, kernels_.token_block};
  const auto pack = [&](int, int64_t first, int64_t last) { fill_blocks(task, first, last, x_blocks); };
  const int64_t blocks = task.count();
  if (tokens * features < kSerialWork) {
    pack(0, 0, blocks);
  } else {
    pool_.parallel(blocks, pack);
  }
}

template <class Encoding>
void CpuBackend::run_linear(const Linear<Encoding>& op) {
  op.check();
  CHECK(!op.position_bias || op.position_bias.contiguous(),
        "linear: position_bias has gaps between its rows");
  const int64_t tokens = op.x.shape[0], features = op.weight.in_features;
  if (tokens == 0) return;
  // A block of one token is the token itself.
  const float* x_blocks = op.x.template as<float>();
  if (tokens > 1) {
    float* packed = blocks_.floats(tokens * features);
    pack_blocks(op.x.template as<float>(), tokens, features, op.x.strides[0], 1, 1, packed);
    x_blocks = packed;
  }
  LinearTask task{};
  task.x_blocks = x_blocks;
  task.tokens = tokens;
  task.weight = tiled(op.weight);
  task.out_features = op.weight.out_features;
  task.bias = op.bias.template as<float>();
  task.position_bias = op.position_bias.template as<float>();
  task.position_rows = op.position_bias ? op.position_bias.shape[0] : 0;
  task.positions = op.positions.template as<int32_t>();
  task.residual = op.residual.template as<float>();
  task.residual_stride = op.residual ? op.residual.strides[0] : 0;
  task.y = op.y.template as<float>();
  task.y_stride = op.y.strides[0];
  task.activation = uint8_t(op.activation);
  const auto run_tiles = [&](int thread, int64_t first, int64_t last) {
    LinearTask mine = task;
    mine.scratch = thread_scratch(thread, linear_scratch_floats());
    kernels_.linear(mine, first, last);
  };
  const int64_t tiles = tile_count(op.weight.out_features);
  if (tokens * features * op.weight.out_features < kSerialWork) {
    run_tiles(0, 0, tiles);
  } else {
    pool_.parallel(tiles, run_tiles);
  }
}

void CpuBackend::run(const Linear<DenseView>& op) {
  run_linear(op);
}
void CpuBackend::run(const Linear<AffineView>& op) {
  run_linear(op);
}
void CpuBackend::run(const Linear<SparseOutlierView>& op) {
  run_linear(op);
}
void CpuBackend::run(const Linear<ResidualBinaryView>& op) {
  run_linear(op);
}

}  // namespace ballast
