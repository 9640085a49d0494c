// Second moments through the inner loop of linear layers: features play the tokens' part and tokens the
// inputs', out[i][j] = Σ_t a[t][i] · b[t][j].
#include "kernels/ops/second_moment.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

constexpr int64_t kTokensAtOnce = 1024;  // the contract's longest f32 sum
constexpr int64_t kRowsAtOnce = 96;      // their tokens stay in L2
constexpr int64_t kTilesAtOnce = 4;      // 512 bytes of every row of out
static_assert(kTokenChunk % kRowsAtOnce == 0);

void add_to(const float* part, int64_t rows, int64_t width, int64_t part_stride, double* out,
            int64_t out_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; ++j) out[i * out_stride + j] += double(part[i * part_stride + j]);
}

}  // namespace

void CpuBackend::run(const SecondMoment& op) {
  op.check();
  const int64_t rows = op.a.shape[1], columns = op.b.shape[1], all_tiles = tile_count(columns);
  const bool symmetric = op.a.data == op.b.data && rows == columns;
  for (int64_t start = 0; start < op.a.shape[0]; start += kTokensAtOnce) {
    const int64_t tokens = std::min(kTokensAtOnce, op.a.shape[0] - start);
    float* x_blocks = blocks_.floats(rows * tokens);
    pack_blocks(op.a.row(start), rows, tokens, 1, op.a.strides[0], 1, x_blocks);
    float* tiles = tiles_.floats(all_tiles * kTileRows * tokens);
    pool_.parallel(all_tiles, [&](int, int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile)
        fill_tile(op.b.row(start), op.b.strides[0], tokens, columns, tile, tiles + tile * kTileRows * tokens);
    });
    // Rows near the end of a triangle have more to do: chunks of rows are dealt out in turn.
    const int64_t threads = pool_.threads();
    pool_.parallel(threads, [&](int thread, int64_t first, int64_t last) {
      constexpr int64_t kStride = kTilesAtOnce * kTileRows;
      LinearTask task{};
      task.scratch = thread_scratch(thread, linear_scratch_floats() + kRowsAtOnce * kStride);
      task.y = task.scratch + linear_scratch_floats();
      task.y_stride = kStride;
      for (int64_t share = first; share < last; ++share)
        for (int64_t row = share * kRowsAtOnce; row < rows; row += threads * kRowsAtOnce) {
          task.tokens = std::min(kRowsAtOnce, rows - row);
          task.x_blocks = x_blocks + row * tokens;
          const int64_t last_tile = symmetric ? tile_count(row + task.tokens) : all_tiles;
          for (int64_t tile = 0; tile < last_tile; tile += kTilesAtOnce) {
            const int64_t count = std::min(kTilesAtOnce, last_tile - tile), column = tile * kTileRows;
            task.weight = {reinterpret_cast<const uint8_t*>(tiles + column * tokens),
                           kTileRows * tokens * int64_t(sizeof(float)), tokens, 0, TileKind::f32};
            task.out_features = count * kTileRows;
            kernels_.linear(task, 0, count);
            add_to(task.y, task.tokens, std::min(task.out_features, columns - column), kStride,
                   op.out + row * columns + column, columns);
          }
        }
    });
  }
  if (symmetric) mirror_lower(op.out, rows);
}

// out[i][j] = out[j][i] for i < j, in squares: reading down a whole column would miss the cache every time.
void CpuBackend::mirror_lower(double* out, int64_t size) {
  constexpr int64_t kSide = 32;
  pool_.parallel((size + kSide - 1) / kSide, [&](int, int64_t first, int64_t last) {
    for (int64_t i0 = first * kSide; i0 < std::min(size, last * kSide); i0 += kSide)
      for (int64_t j0 = i0; j0 < size; j0 += kSide)
        for (int64_t i = i0; i < std::min(size, i0 + kSide); ++i)
          for (int64_t j = std::max(i + 1, j0); j < std::min(size, j0 + kSide); ++j)
            out[i * size + j] = out[j * size + i];
  });
}

}  // namespace ballast
