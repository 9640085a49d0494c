// Linear layers, and the quantizer's dense products through the same inner loop.
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

void CpuBackend::run(const RankUpdate& op) {
  op.check();
  const int64_t rows = op.e.shape[0], rank = op.e.shape[1], columns = op.u.shape[1];
  if (rows == 0 || rank == 0 || columns == 0) return;
  float* x_blocks = blocks_.floats(rows * rank);
  pack_blocks(op.e.as<float>(), rows, rank, op.e.strides[0], 1, op.add ? 1 : -1, x_blocks);
  float* tiles = tiles_.floats(tile_count(columns) * kTileRows * rank);
  LinearTask task{};
  task.x_blocks = x_blocks;
  task.tokens = rows;
  task.weight = {reinterpret_cast<const uint8_t*>(tiles), rank * kTileRows * int64_t(sizeof(float)), rank, 0,
                 TileKind::f32};
  task.out_features = columns;
  task.residual = op.w.as<float>();
  task.residual_stride = op.w.strides[0];
  task.y = op.w.as<float>();
  task.y_stride = op.w.strides[0];
  pool_.parallel(tile_count(columns), [&](int thread, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile)
      fill_tile(op.u.as<float>(), op.u.strides[0], rank, columns, tile, tiles + tile * rank * kTileRows);
    LinearTask mine = task;
    mine.scratch = thread_scratch(thread, linear_scratch_floats());
    kernels_.linear(mine, first, last);
  });
}

// Features play the tokens' part and tokens the inputs': out[i][j] = Σ_t a[t][i] · b[t][j].
void CpuBackend::run(const SecondMoment& op) {
  op.check();
  constexpr int64_t kTokensAtOnce = 1024;
  const int64_t rows = op.a.shape[1], columns = op.b.shape[1];
  const bool symmetric = op.a.data == op.b.data && rows == columns;
  for (int64_t start = 0; start < op.a.shape[0]; start += kTokensAtOnce) {
    const int64_t tokens = std::min(kTokensAtOnce, op.a.shape[0] - start);
    float* x_blocks = blocks_.floats(rows * tokens);
    pack_blocks(op.a.row(start), rows, tokens, 1, op.a.strides[0], 1, x_blocks);
    float* tiles = tiles_.floats(tile_count(columns) * kTileRows * tokens);
    // Tiles near the diagonal's end have little to do when only one triangle is computed: deal them out in
    // turn.
    const int64_t threads = pool_.threads();
    pool_.parallel(threads, [&](int thread, int64_t first, int64_t last) {
      for (int64_t share = first; share < last; ++share) {
        for (int64_t tile = share; tile < tile_count(columns); tile += threads) {
          float* mine = tiles + tile * kTileRows * tokens;
          fill_tile(op.b.row(start), op.b.strides[0], tokens, columns, tile, mine);
          const int64_t skipped =
              symmetric ? tile * kTileRows / kernels_.token_block * kernels_.token_block : 0;
          LinearTask task{};
          task.x_blocks = x_blocks + skipped * tokens;
          task.tokens = rows - skipped;
          task.weight = {reinterpret_cast<const uint8_t*>(mine), 0, tokens, 0, TileKind::f32};
          task.out_features = kTileRows;
          task.scratch = thread_scratch(thread, linear_scratch_floats() + rows * kTileRows);
          task.y = task.scratch + linear_scratch_floats();
          task.y_stride = kTileRows;
          kernels_.linear(task, 0, 1);
          const int64_t width = std::min(kTileRows, columns - tile * kTileRows);
          for (int64_t i = skipped; i < rows; ++i)
            for (int64_t j = 0; j < width; ++j)
              op.out[i * columns + tile * kTileRows + j] += double(task.y[(i - skipped) * kTileRows + j]);
        }
      }
    });
  }
  if (symmetric) mirror_lower(op.out, rows);
}

// out[i][j] = out[j][i] for i < j, in squares: reading down a whole column would miss the cache every time.
void CpuBackend::mirror_lower(double* out, int64_t size) {
  constexpr int64_t kSquare = 32;
  pool_.parallel((size + kSquare - 1) / kSquare, [&](int, int64_t first, int64_t last) {
    for (int64_t i0 = first * kSquare; i0 < std::min(size, last * kSquare); i0 += kSquare)
      for (int64_t j0 = i0; j0 < size; j0 += kSquare)
        for (int64_t i = i0; i < std::min(size, i0 + kSquare); ++i)
          for (int64_t j = std::max(i + 1, j0); j < std::min(size, j0 + kSquare); ++j)
            out[i * size + j] = out[j * size + i];
  });
}

}  // namespace ballast
