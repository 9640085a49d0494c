// Gradients of attention, all products through the inner loop of the linear layers.
//
// Work partition: a thread owns one head of one sequence. Blocks of queries ascend; each forms its rows of
// scores and of their gradients, and adds its share to dk and dv.
#include <algorithm>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"
#include "kernels/ops/attention.h"

namespace ballast {
namespace {

// A multiple of every token block; large enough that dk and dv are not read and written too often.
constexpr int64_t kQueries = 96;

// One head of one sequence, and the memory of the thread that works on it.
class HeadGradient {
 public:
  static int64_t scratch_floats(int64_t rows, int64_t head_dim) {
    const int64_t wide = tile_count(rows) * kTileRows, narrow = tile_count(head_dim) * kTileRows;
    return 2 * wide * head_dim + narrow * (rows + kQueries) + 3 * kQueries * wide + kQueries * head_dim +
           linear_scratch_floats();
  }

  HeadGradient(const KernelTable& kernels, const AttentionBackward& op, const AttentionSpan& span,
               int64_t head, float* scratch)
      : kernels_(kernels),
        op_(op),
        rows_(span.rows),
        dim_(op.q.shape[1] / op.heads),
        wide_(tile_count(rows_) * kTileRows),
        first_(span.first_row),
        column_(head * dim_) {
    const auto take = [&](int64_t floats) { return std::exchange(scratch, scratch + floats); };
    key_rows_ = take(wide_ * dim_);
    value_rows_ = take(wide_ * dim_);
    key_columns_ = take(tile_count(dim_) * kTileRows * rows_);
    query_columns_ = take(tile_count(dim_) * kTileRows * kQueries);
    scores_ = take(kQueries * wide_);
    d_scores_ = take(kQueries * wide_);
    blocks_ = take(kQueries * std::max(wide_, dim_));
    linear_ = take(linear_scratch_floats());
  }

  void run() {
    for (int64_t tile = 0; tile < tile_count(rows_); ++tile) {
      fill_tile(at(op_.k, 0), 1, dim_, rows_, tile, key_rows_ + tile * kTileRows * dim_, op_.k.strides[0]);
      fill_tile(at(op_.v, 0), 1, dim_, rows_, tile, value_rows_ + tile * kTileRows * dim_, op_.v.strides[0]);
    }
    fill_columns(at(op_.k, 0), op_.k.strides[0], rows_, key_columns_);
    for (int64_t first = 0; first < rows_; first += kQueries)
      query_block(first, std::min(kQueries, rows_ - first));
  }

 private:
  // out[i][j] (+)= Σ_k a(i, k) · tiles(k, j)
  struct Product {
    TokenBlocks a;
    const float* tiles;
    int64_t tile_floats;
    int64_t columns;
    float* out;
    int64_t out_stride;
    bool accumulate;
  };

  const float* at(const TensorView& view, int64_t row) const { return view.row(first_ + row) + column_; }
  float* at(const OutputView& view, int64_t row) const { return view.row(first_ + row) + column_; }

  void fill_columns(const float* source, int64_t stride, int64_t depth, float* tiles) const {
    for (int64_t tile = 0; tile < tile_count(dim_); ++tile)
      fill_tile(source, stride, depth, dim_, tile, tiles + tile * kTileRows * depth);
  }

  void multiply(const Product& product) const {
    fill_blocks(product.a, 0, product.a.count(), blocks_);
    LinearTask task{};
    task.x_blocks = blocks_;
    task.tokens = product.a.tokens;
    task.weight = {reinterpret_cast<const uint8_t*>(product.tiles),
                   product.tile_floats * int64_t(sizeof(float)), product.a.features, 0, TileKind::f32};
    task.out_features = product.columns;
    task.residual = product.accumulate ? product.out : nullptr;
    task.residual_stride = product.out_stride;
    task.y = product.out;
    task.y_stride = product.out_stride;
    task.scratch = linear_;
    kernels_.linear(task, 0, tile_count(product.columns));
  }

  TokenBlocks along_rows(const float* x, int64_t stride, int64_t tokens, int64_t features,
                         float factor) const {
    return {x, tokens, features, stride, 1, factor, kernels_.token_block};
  }

  void query_block(int64_t first, int64_t count) const;
  // d(position) += Σ_i by_query[i][position] · source[i]
  void add_to_positions(const float* by_query, int64_t count, int64_t positions, const TensorView& source,
                        int64_t first, const OutputView& d) const {
    fill_columns(at(source, first), source.strides[0], count, query_columns_);
    multiply({.a = {by_query, positions, count, 1, wide_, 1, kernels_.token_block},
              .tiles = query_columns_,
              .tile_floats = kTileRows * count,
              .columns = dim_,
              .out = at(d, 0),
              .out_stride = d.strides[0],
              .accumulate = true});
  }

  const KernelTable& kernels_;
  const AttentionBackward& op_;
  int64_t rows_, dim_, wide_, first_, column_;
  float *key_rows_, *value_rows_;        ///< tiles whose lanes are positions, [k = dimension][16]
  float *key_columns_, *query_columns_;  ///< tiles whose lanes are dimensions, [k = row][16]
  float *scores_, *d_scores_;            ///< [kQueries, wide_]: probabilities and scale · ds
  float *blocks_, *linear_;
};

void HeadGradient::query_block(int64_t first, int64_t count) const {
  const bool causal = op_.mask == Mask::causal;
  const int64_t positions = causal ? first + count : rows_;
  multiply({.a = along_rows(at(op_.q, first), op_.q.strides[0], count, dim_, op_.scale),
            .tiles = key_rows_,
            .tile_floats = kTileRows * dim_,
            .columns = positions,
            .out = scores_,
            .out_stride = wide_});
  multiply({.a = along_rows(at(op_.d_out, first), op_.d_out.strides[0], count, dim_, 1),
            .tiles = value_rows_,
            .tile_floats = kTileRows * dim_,
            .columns = positions,
            .out = d_scores_,
            .out_stride = wide_});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t seen = causal ? first + i + 1 : rows_, written = tile_count(seen) * kTileRows;
    kernels_.softmax_backward(scores_ + i * wide_, seen, op_.scale, d_scores_ + i * wide_);
    for (float* row : {scores_ + i * wide_, d_scores_ + i * wide_})
      std::fill(row + written, row + std::max(written, positions), 0.0f);
  }
  multiply({.a = along_rows(d_scores_, wide_, count, positions, 1),
            .tiles = key_columns_,
            .tile_floats = kTileRows * rows_,
            .columns = dim_,
            .out = at(op_.dq, first),
            .out_stride = op_.dq.strides[0],
            .accumulate = true});
  add_to_positions(d_scores_, count, positions, op_.q, first, op_.dk);
  add_to_positions(scores_, count, positions, op_.d_out, first, op_.dv);
}

}  // namespace

void CpuBackend::run(const AttentionBackward& op) {
  op.check();
  // Dealt out in turn: the heads of a long sequence are spread over the threads.
  const int64_t threads = pool_.threads(), units = int64_t(op.spans.size()) * op.heads;
  pool_.parallel(threads, [&](int thread, int64_t first, int64_t last) {
    for (int64_t share = first; share < last; ++share)
      for (int64_t unit = share; unit < units; unit += threads) {
        const AttentionSpan& span = op.spans[size_t(unit / op.heads)];
        const int64_t floats = HeadGradient::scratch_floats(span.rows, op.q.shape[1] / op.heads);
        HeadGradient(kernels_, op, span, unit % op.heads, thread_scratch(thread, floats)).run();
      }
  });
}

}  // namespace ballast
