// Attention, one instruction set (see simd.h).
//
// Work partition: a call owns one head and a range of query rows. Positions are taken in blocks of kAttentionBlock
// that start at absolute positions. A block by itself gives each query its largest score, its sum of exponentials and
// its sum of values; blocks are then joined in ascending order (online softmax: Milakov and Gimelshein, arXiv
// 1805.02867). Scores: lanes are the 16 positions of a page, the head's dimensions ascend. Values: lanes are
// dimensions, positions ascend. The sum of exponentials keeps one partial sum per lane and folds them once. All
// orders depend on absolute positions alone: whether one thread does all blocks of a query or several share them,
// and which queries are done together, changes no bit.
#pragma once

#include "kernels/cpu/cache_pages.h"

namespace ballast::BALLAST_ISA {

// Queries that share the loads of keys and values, and for a query alone the pages and vectors of dimensions that
// keep the multipliers busy.
#if defined(BALLAST_AVX512)
inline constexpr int kQueries = 12, kPagesOfOne = 8, kVectorsOfOne = 4;
#elif defined(BALLAST_AVX2)
inline constexpr int kQueries = 6, kPagesOfOne = 4, kVectorsOfOne = 4;
#else
inline constexpr int kQueries = 4, kPagesOfOne = 1, kVectorsOfOne = 1;
#endif
static_assert(kQueries <= kMostQueries && kAttentionBlock % (kPagesOfOne * kLanes) == 0);

struct BlockSum {
  float top, total;  ///< largest score; Σ exp(score − top)
};
// In place: score -> exp(score − top) for `count` positions; lanes beyond count become 0.
static inline BlockSum exponentials(float* scores, int64_t count) {
  const int64_t blocks = (count + kLanes - 1) / kLanes;
  const int tail = int(count - (blocks - 1) * kLanes);
  const F lowest = broadcast(-3.0e38f);
  F highest = lowest;
  for (int64_t b = 0; b < blocks; ++b) {
    F value = load(scores + b * kLanes);
    if (b == blocks - 1) {  // the last page's unused positions hold whatever was in memory
      value = first(tail, value, lowest);
      store(scores + b * kLanes, value);
    }
    highest = max(highest, value);
  }
  float lanes[kLanes];
  store(lanes, highest);
  float top = lanes[0];
  for (int i = 1; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
  F sums = broadcast(0);
  for (int64_t b = 0; b < blocks; ++b) {
    F value = exp(sub(load(scores + b * kLanes), broadcast(top)));
    if (b == blocks - 1) value = first(tail, value, broadcast(0));
    store(scores + b * kLanes, value);
    sums = add(sums, value);
  }
  return {top, sum(sums)};
}

static float softmax(float* row, int64_t count) {
  return 1.0f / exponentials(row, count).total;
}

// Rows of 16 in a line of memory.
template <class E>
inline constexpr int64_t kRowsOfLine = 64 / (kLanes * int64_t(sizeof(E)));

// scores[query][page][16] of QUERIES queries and PAGES pages; `next` are pages to fetch meanwhile, if any.
template <int QUERIES, int PAGES, class E>
static inline void score_pages(const E* const* keys, const E* const* next, const float* q, int64_t head_dim,
                               float* scores) {
  F sums[QUERIES][PAGES];
  for (int i = 0; i < QUERIES; ++i)
    for (int p = 0; p < PAGES; ++p) sums[i][p] = broadcast(0);
  for (int64_t d = 0; d < head_dim; ++d) {
    F key[PAGES];
#pragma GCC unroll 8
    for (int p = 0; p < PAGES; ++p) {
      key[p] = load_cached(keys[p] + d * kLanes);
      if (next && d % kRowsOfLine<E> == 0) __builtin_prefetch(next[p] + d * kLanes);
    }
#pragma GCC unroll 12
    for (int i = 0; i < QUERIES; ++i) {
      const F query = broadcast(q[i * head_dim + d]);
#pragma GCC unroll 8
      for (int p = 0; p < PAGES; ++p) sums[i][p] = fma(query, key[p], sums[i][p]);
    }
  }
  for (int p = 0; p < PAGES; ++p)
    for (int i = 0; i < QUERIES; ++i) {
      if constexpr (kCoded<E>) sums[i][p] = mul(sums[i][p], load(page_scales(keys[p], head_dim)));
      store(scores + i * kAttentionBlock + p * kLanes, sums[i][p]);
    }
}

// sums[query][d …] = Σ_j weights[query][j] v[j][d …] over the `count` positions of a block from `begin` on, for
// VECTORS vectors of dimensions, or, where not WHOLE, for one of which `width` dimensions are left.
template <class E, int QUERIES, int VECTORS, bool WHOLE = true>
static inline void mix_values(const AttentionTask& task, int64_t head, int64_t begin, int64_t count,
                              const float* weights, int64_t d, int64_t width, float* out) {
  F sums[QUERIES][VECTORS];
  for (int i = 0; i < QUERIES; ++i)
    for (int n = 0; n < VECTORS; ++n) sums[i][n] = broadcast(0);
  for (int64_t j0 = 0; j0 < count; j0 += kLanes) {
    const E* values = value_page<E>(task, begin + j0, head) + d;
    // The page behind is fetched while this one is read, for a query alone, whose values come from memory.
    const bool more = QUERIES == 1 && j0 + kLanes < count;
    const E* next = more ? value_page<E>(task, begin + j0 + kLanes, head) + d : values;
    const int64_t positions = count - j0 < kLanes ? count - j0 : kLanes;
    for (int64_t j = 0; j < positions; ++j) {
      F value[VECTORS];
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; ++n) {
        const E* from = values + j * task.head_dim + n * kLanes;
        value[n] = WHOLE ? load_cached(from) : load_first(from, width);
        if (QUERIES == 1 && n % kRowsOfLine<E> == 0)
          __builtin_prefetch(next + j * task.head_dim + n * kLanes);
      }
#pragma GCC unroll 12
      for (int i = 0; i < QUERIES; ++i) {
        const F weight = broadcast(weights[i * kAttentionBlock + j0 + j]);
#pragma GCC unroll 4
        for (int n = 0; n < VECTORS; ++n) sums[i][n] = fma(weight, value[n], sums[i][n]);
      }
    }
  }
  for (int i = 0; i < QUERIES; ++i)
    for (int n = 0; n < VECTORS; ++n) {
      if (WHOLE) {
        store(out + i * task.head_dim + d + n * kLanes, sums[i][n]);
        continue;
      }
      float part[kLanes];
      store(part, sums[i][n]);
      for (int64_t lane = 0; lane < width; ++lane) out[i * task.head_dim + d + lane] = part[lane];
    }
}

// Takes the scales of coded values to the weights of `count` positions; the others, whose scales may be anything, stay 0.
static inline void scale_weights(const AttentionTask& task, int64_t head, int64_t begin, int64_t count,
                                 float* weights) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const F scales = load(page_scales(value_page<int8_t>(task, begin + j, head), task.head_dim));
    const F scaled = mul(load(weights + j), scales);
    store(weights + j, count - j < kLanes ? first(int(count - j), scaled, broadcast(0)) : scaled);
  }
}

// One block for QUERIES queries, of which query i sees count[i] > 0 positions of the block or none. `q` is scaled.
// sums [query][head_dim] are not divided by the totals.
template <class E, int QUERIES>
static inline void attend_block(const AttentionTask& task, int64_t head, int64_t block, const float* q,
                                const int64_t* count, float* scores, float* sums, BlockSum* block_sums) {
  const int64_t begin = block * kAttentionBlock;
  int64_t longest = 0;
  for (int i = 0; i < QUERIES; ++i) longest = count[i] > longest ? count[i] : longest;
  constexpr int kPages = QUERIES == 1 ? kPagesOfOne : 1;
  const int64_t pages = (longest + kLanes - 1) / kLanes;
  int64_t page = 0;
  for (; page + kPages <= pages; page += kPages) {
    const E *keys[kPages], *next[kPages];
    for (int p = 0; p < kPages; ++p) {
      keys[p] = key_page<E>(task, begin + (page + p) * kLanes, head);
      // Behind the last pages come this block's values.
      const int64_t ahead = page + p + kPages;
      next[p] = ahead < pages ? key_page<E>(task, begin + ahead * kLanes, head)
                              : value_page<E>(task, begin + (page + p) * kLanes, head);
    }
    score_pages<QUERIES, kPages, E>(keys, QUERIES == 1 ? next : nullptr, q, task.head_dim,
                                    scores + page * kLanes);
  }
  for (; page < pages; ++page) {
    const E* keys[] = {key_page<E>(task, begin + page * kLanes, head)};
    score_pages<QUERIES, 1, E>(keys, nullptr, q, task.head_dim, scores + page * kLanes);
  }
  for (int i = 0; i < QUERIES; ++i) {
    if (count[i] > 0) block_sums[i] = exponentials(scores + i * kAttentionBlock, count[i]);
    // Queries share the loop over the longest of them; the others' extra weights are zero, and adding zero products
    // changes no bit.
    for (int64_t j = (count[i] + kLanes - 1) / kLanes * kLanes; j < longest; ++j)
      scores[i * kAttentionBlock + j] = 0;
    if constexpr (kCoded<E>) scale_weights(task, head, begin, count[i], scores + i * kAttentionBlock);
  }
  int64_t d = 0;
  constexpr int kVectors = QUERIES == 1 ? kVectorsOfOne : 1;
  if constexpr (kVectors > 1)
    for (; d + kVectors * kLanes <= task.head_dim; d += kVectors * kLanes)
      mix_values<E, QUERIES, kVectors>(task, head, begin, longest, scores, d, kLanes, sums);
  for (; d + kLanes <= task.head_dim; d += kLanes)
    mix_values<E, QUERIES, 1>(task, head, begin, longest, scores, d, kLanes, sums);
  if (d < task.head_dim)
    mix_values<E, QUERIES, 1, false>(task, head, begin, longest, scores, d, task.head_dim - d, sums);
}

// all = the positions of `all` and then those of a block behind them.
static inline void join(BlockSum& all, float* all_sums, const BlockSum& block, const float* sums,
                        int64_t head_dim) {
  const float top = block.top > all.top ? block.top : all.top;
  const F before = exp(broadcast(all.top - top)), here = exp(broadcast(block.top - top));
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes)
    store(all_sums + d, fma(load(all_sums + d), before, mul(load(sums + d), here)));
  float factors[2][kLanes];
  store(factors[0], before);
  store(factors[1], here);
  for (; d < head_dim; ++d) all_sums[d] = __builtin_fmaf(all_sums[d], factors[0][0], sums[d] * factors[1][0]);
  all.total = __builtin_fmaf(all.total, factors[0][0], block.total * factors[1][0]);
  all.top = top;
}

static inline void scale_query(const AttentionTask& task, int64_t head, int64_t row, float* scaled) {
  const float* q = task.q + row * task.q_stride + head * task.head_dim;
  for (int64_t d = 0; d < task.head_dim; ++d) scaled[d] = q[d] * task.scale;
}

static inline void write_row(const AttentionTask& task, int64_t head, int64_t row, const float* sums,
                             float total) {
  float* out = task.out + row * task.out_stride + head * task.head_dim;
  const float inverse = 1.0f / total;
  for (int64_t d = 0; d < task.head_dim; ++d) out[d] = sums[d] * inverse;
}

// Of the positions that a row sees, those in a block; none where negative.
static inline int64_t seen_in_block(const AttentionTask& task, int64_t row, int64_t block) {
  const int64_t all = task.causal ? task.past + row + 1 : task.past + task.rows;
  const int64_t left = all - block * kAttentionBlock;
  return left < kAttentionBlock ? left : kAttentionBlock;
}

// The running state of up to kRowsPerUnit rows.
struct RowState {
  BlockSum sums[kRowsPerUnit];
  float* q;       ///< [rows][head_dim]
  float* values;  ///< [rows][head_dim]
  float* scores;  ///< [kMostQueries][kAttentionBlock]
  float* block;   ///< [kMostQueries][head_dim]
};

template <class E, int QUERIES>
static inline void attend_queries(const AttentionTask& task, int64_t head, int64_t first, int64_t index,
                                  int64_t block, RowState& state) {
  const int64_t dim = task.head_dim;
  int64_t count[QUERIES];
  for (int i = 0; i < QUERIES; ++i) {
    count[i] = seen_in_block(task, first + index + i, block);
    if (count[i] < 0) count[i] = 0;
  }
  if (count[QUERIES - 1] == 0) return;  // rows ascend, so no query has a position here
  BlockSum sums[QUERIES];
  attend_block<E, QUERIES>(task, head, block, state.q + index * dim, count, state.scores, state.block, sums);
  for (int i = 0; i < QUERIES; ++i) {
    if (count[i] == 0) continue;
    float* values = state.values + (index + i) * dim;
    if (block == 0) {
      state.sums[index + i] = sums[i];
      for (int64_t d = 0; d < dim; ++d) values[d] = state.block[i * dim + d];
    } else {
      join(state.sums[index + i], values, sums[i], state.block + i * dim, dim);
    }
  }
}

template <class E>
static inline void attend_rows(const AttentionTask& task, int64_t head, int64_t first, int64_t last) {
  const int64_t dim = task.head_dim, rows = last - first;
  RowState state;
  state.q = task.scratch;
  state.values = state.q + kRowsPerUnit * dim;
  state.scores = state.values + kRowsPerUnit * dim;
  state.block = state.scores + kMostQueries * kAttentionBlock;
  for (int64_t i = 0; i < rows; ++i) scale_query(task, head, first + i, state.q + i * dim);
  const int64_t seen = task.causal ? task.past + last : task.past + task.rows;
  for (int64_t block = 0; block * kAttentionBlock < seen; ++block) {
    int64_t i = 0;
    for (; i + kQueries <= rows; i += kQueries)
      attend_queries<E, kQueries>(task, head, first, i, block, state);
    for (; i < rows; ++i) attend_queries<E, 1>(task, head, first, i, block, state);
  }
  for (int64_t i = 0; i < rows; ++i)
    write_row(task, head, first + i, state.values + i * dim, state.sums[i].total);
}

static void attend(const AttentionTask& task, int64_t head, int64_t first, int64_t last) {
  task.coded ? attend_rows<int8_t>(task, head, first, last) : attend_rows<float>(task, head, first, last);
}

static void attend_part(const AttentionTask& task, int64_t head, int64_t row, int64_t block, float* part) {
  float* scores = task.scratch + task.head_dim;
  scale_query(task, head, row, task.scratch);
  const int64_t count = seen_in_block(task, row, block);
  BlockSum sums;
  const auto attend = task.coded ? attend_block<int8_t, 1> : attend_block<float, 1>;
  attend(task, head, block, task.scratch, &count, scores, part + 2, &sums);
  part[0] = sums.top;
  part[1] = sums.total;
}

static void join_parts(const AttentionTask& task, int64_t head, int64_t row, int64_t count, float* parts) {
  const int64_t stride = attention_part_floats(task.head_dim);
  BlockSum all{parts[0], parts[1]};
  for (int64_t block = 1; block < count; ++block) {
    const float* part = parts + block * stride;
    join(all, parts + 2, {part[0], part[1]}, part + 2, task.head_dim);
  }
  write_row(task, head, row, parts + 2, all.total);
}

}  // namespace ballast::BALLAST_ISA
