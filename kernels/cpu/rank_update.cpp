// The quantizer's dense product, through the inner loop of linear layers: rows of e play the tokens' part.
#include "kernels/ops/rank_update.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

// Tiles of one work item: 512 columns, so that a thread stays on the pages of a few rows of w.
constexpr int64_t kTilesAtOnce = 32;

}  // namespace

void CpuBackend::run(const RankUpdate& op) {
  op.check();
  const int64_t rows = op.e.shape[0], rank = op.e.shape[1], columns = op.u.shape[1];
  if (rows == 0 || rank == 0 || columns == 0) return;
  float* x_blocks = blocks_.floats(rows * rank);
  pack_blocks(op.e.as<float>(), rows, rank, op.e.strides[0], 1, -1, x_blocks);
  const int64_t all_tiles = tile_count(columns);
  float* tiles = tiles_.floats(all_tiles * kTileRows * rank);
  pool_.parallel(all_tiles, [&](int, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile)
      fill_tile(op.u.as<float>(), op.u.strides[0], rank, columns, tile, tiles + tile * rank * kTileRows);
  });
  LinearTask task{};
  task.weight = {reinterpret_cast<const uint8_t*>(tiles), rank * kTileRows * int64_t(sizeof(float)), rank, 0,
                 TileKind::f32};
  task.out_features = columns;
  task.residual_stride = op.w.strides[0];
  task.y_stride = op.w.strides[0];
  // Work items: a chunk of rows, which stays in L2, by some tiles.
  const int64_t chunks = (rows + kTokenChunk - 1) / kTokenChunk;
  const int64_t parts = (all_tiles + kTilesAtOnce - 1) / kTilesAtOnce;
  pool_.parallel(chunks * parts, [&](int thread, int64_t begin, int64_t end) {
    LinearTask mine = task;
    mine.scratch = thread_scratch(thread, linear_scratch_floats());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / parts * kTokenChunk, tile = item % parts * kTilesAtOnce;
      mine.tokens = std::min(kTokenChunk, rows - row);
      mine.x_blocks = x_blocks + row * rank;
      mine.y = op.w.row(row);
      mine.residual = mine.y;
      kernels_.linear(mine, tile, std::min(all_tiles, tile + kTilesAtOnce));
    }
  });
}

}  // namespace ballast
