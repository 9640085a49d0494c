#include "kernels/cpu/attention_whole.h"

#include <algorithm>
#include <utility>

#include "kernels/cpu/round_activations.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

// out[i][j] = Σ_k a(i, k) · tiles(k, j)
void multiply(const KernelTable& kernels, const TokenBlocks& a, const float* tiles, int64_t columns, float* out,
              int64_t out_stride, float* blocks, float* linear) {
  fill_blocks(a, 0, a.count(), blocks);
  LinearTask task{};
  task.x_blocks = blocks;
  task.tokens = a.tokens;
  task.weight = {reinterpret_cast<const uint8_t*>(tiles), kTileRows * a.features * int64_t(sizeof(float)),
                 a.features, 0, TileKind::f32};
  task.out_features = columns;
  task.y = out;
  task.y_stride = out_stride;
  task.scratch = linear;
  kernels.linear(task, 0, tile_count(columns));
}

}  // namespace

int64_t WholeAttention::scratch_floats() const {
  const int64_t dim = op.q.shape[1] / op.heads, wide = tile_count(span.rows) * kTileRows;
  return wide * dim + tile_count(dim) * kTileRows * span.rows + queries * wide +
         queries * std::max(wide, dim) + linear_scratch_floats();
}

// The order of every sum is that of the cached kernel: dimensions ascend, then positions.
void WholeAttention::run(const KernelTable& kernels, float* scratch) const {
  const int64_t rows = span.rows, dim = op.q.shape[1] / op.heads, wide = tile_count(rows) * kTileRows;
  const int64_t column = head * dim, first = span.first_row;
  const auto take = [&](int64_t floats) { return std::exchange(scratch, scratch + floats); };
  float* keys = take(wide * dim);  // tiles whose lanes are positions
  float* values = take(tile_count(dim) * kTileRows * rows);  // tiles whose lanes are dimensions
  float* scores = take(queries * wide);
  float* blocks = take(queries * std::max(wide, dim));
  float* linear = take(linear_scratch_floats());

  const bool causal = op.mask == Mask::causal;
  const int64_t positions = causal ? first_query + queries : rows;
  const float *k = op.k.row(first) + column, *v = op.v.row(first) + column;
  for (int64_t tile = 0; tile < tile_count(positions); ++tile)
    fill_tile(k, 1, dim, positions, tile, keys + tile * kTileRows * dim, op.k.strides[0]);
  for (int64_t tile = 0; tile < tile_count(dim); ++tile)
    fill_tile(v, op.v.strides[0], positions, dim, tile, values + tile * kTileRows * positions);

  const float* q = op.q.row(first + first_query) + column;
  multiply(kernels, {q, queries, dim, op.q.strides[0], 1, op.scale, kernels.token_block}, keys, positions,
           scores, wide, blocks, linear);
  float* out = op.out.row(first + first_query) + column;
  float inverse[kWholeQueries];
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t seen = causal ? first_query + i + 1 : rows;
    inverse[i] = kernels.softmax(scores + i * wide, seen);
    if (op.probability_grid) {
      float* row = scores + i * wide;
      for (int64_t j = 0; j < seen; ++j) row[j] *= inverse[i];
      inverse[i] = 1;
      RoundTask task = round_task(*op.probability_grid);
      task.x = task.y = row;
      task.count = seen;
      kernels.round_row(task);
    }
    std::fill(scores + i * wide + seen, scores + i * wide + std::max(seen, positions), 0.0f);
  }
  multiply(kernels, {scores, queries, positions, wide, 1, 1, kernels.token_block}, values, dim, out,
           op.out.strides[0], blocks, linear);
  for (int64_t i = 0; i < queries; ++i)
    for (int64_t d = 0; d < dim; ++d) out[i * op.out.strides[0] + d] *= inverse[i];
}

}  // namespace ballast
