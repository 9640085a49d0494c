// Attention and layer normalization, one instruction set (see simd.h).
//
// Work partition: a call owns one head and a range of query rows. Scores: lanes are the 16 positions of a
// page, the head's dimensions ascend. Values: lanes are dimensions, positions ascend. The sum of exponentials
// keeps one partial sum per lane and folds them once. All three orders depend on absolute positions alone.
#pragma once

#include <math.h>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

struct RowMoments {
  float mean, inverse;  ///< inverse: 1 / sqrt(variance + epsilon)
};
static inline RowMoments row_moments(const float* x, float epsilon, int64_t hidden) {
  const int64_t whole = hidden / kLanes * kLanes;
  F sums = broadcast(0);
  for (int64_t i = 0; i < whole; i += kLanes) sums = add(sums, load(x + i));
  float total = sum(sums);
  for (int64_t i = whole; i < hidden; ++i) total += x[i];
  const float mean = total / float(hidden);

  F squares = broadcast(0);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const F centred = sub(load(x + i), broadcast(mean));
    squares = fma(centred, centred, squares);
  }
  float variance = sum(squares);
  for (int64_t i = whole; i < hidden; ++i) variance = __builtin_fmaf(x[i] - mean, x[i] - mean, variance);
  return {mean, 1.0f / sqrtf(variance / float(hidden) + epsilon)};
}

static void layernorm(const float* x, const float* weight, const float* bias, float epsilon, int64_t hidden,
                      float* y) {
  const auto [mean, inverse] = row_moments(x, epsilon, hidden);
  for (int64_t i = 0; i < hidden; ++i) {
    float value = (x[i] - mean) * inverse;
    if (weight) value = value * weight[i];
    y[i] = bias ? value + bias[i] : value;
  }
}

static inline float* key_page(const AttentionTask& task, int64_t position, int64_t head) {
  const int64_t page_floats = task.head_dim * kLanes;
  return task.cache + (int64_t(task.pages[position / kLanes]) * 2 * task.heads + head) * page_floats;
}
static inline float* value_page(const AttentionTask& task, int64_t position, int64_t head) {
  return key_page(task, position, head) + task.heads * task.head_dim * kLanes;
}

static void append(const AttentionTask& task, int64_t head) {
  for (int64_t row = 0; row < task.rows; ++row) {
    const int64_t position = task.past + row, lane = position % kLanes;
    float* keys = key_page(task, position, head);
    float* values = value_page(task, position, head) + lane * task.head_dim;
    const float* k = task.k + row * task.k_stride + head * task.head_dim;
    const float* v = task.v + row * task.v_stride + head * task.head_dim;
    for (int64_t d = 0; d < task.head_dim; ++d) keys[d * kLanes + lane] = k[d];
    for (int64_t d = 0; d < task.head_dim; ++d) values[d] = v[d];
  }
}

// scores[query][page positions] for QUERIES queries against one page.
template <int QUERIES>
static inline void score_page(const float* keys, const float* q, int64_t head_dim, float* scores,
                              int64_t stride) {
  F sums[QUERIES];
  for (int i = 0; i < QUERIES; ++i) sums[i] = broadcast(0);
  for (int64_t d = 0; d < head_dim; ++d) {
    const F key = load(keys + d * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < QUERIES; ++i) sums[i] = fma(broadcast(q[i * head_dim + d]), key, sums[i]);
  }
  for (int i = 0; i < QUERIES; ++i) store(scores + i * stride, sums[i]);
}

// In place: scores of `count` positions -> probabilities; lanes beyond count become 0. Returns 1 / sum.
static inline float softmax(float* scores, int64_t count) {
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
  return 1.0f / sum(sums);
}

// out[query][d] = Σ_j p[query][j] v[j][d] for one vector of dimensions.
template <int QUERIES>
static inline void mix_values(const AttentionTask& task, int64_t head, const float* scores, int64_t stride,
                              int64_t count, int64_t d, const float* inverse, float* const* out) {
  F sums[QUERIES];
  for (int i = 0; i < QUERIES; ++i) sums[i] = broadcast(0);
  const int64_t width = task.head_dim - d < kLanes ? task.head_dim - d : kLanes;
  for (int64_t j0 = 0; j0 < count; j0 += kLanes) {
    const float* values = value_page(task, j0, head) + d;
    const int64_t positions = count - j0 < kLanes ? count - j0 : kLanes;
    for (int64_t j = 0; j < positions; ++j) {
      F value;
      if (width == kLanes) {
        value = load(values + j * task.head_dim);
      } else {
        float part[kLanes] = {};
        for (int64_t i = 0; i < width; ++i) part[i] = values[j * task.head_dim + i];
        value = load(part);
      }
#pragma GCC unroll 4
      for (int i = 0; i < QUERIES; ++i) sums[i] = fma(broadcast(scores[i * stride + j0 + j]), value, sums[i]);
    }
  }
  for (int i = 0; i < QUERIES; ++i) {
    float part[kLanes];
    store(part, mul(sums[i], broadcast(inverse[i])));
    for (int64_t lane = 0; lane < width; ++lane) out[i][d + lane] = part[lane];
  }
}

template <int QUERIES>
static void attend_block(const AttentionTask& task, int64_t head, int64_t row) {
  const int64_t total = task.past + task.rows;
  const int64_t stride = (total + kLanes - 1) / kLanes * kLanes;
  float* scores = task.scratch;
  float* scaled = task.scratch + kQueryBlock * stride;
  int64_t longest = 0, count[QUERIES];
  float* out[QUERIES];
  for (int i = 0; i < QUERIES; ++i) {
    count[i] = task.causal ? task.past + row + i + 1 : total;
    longest = count[i] > longest ? count[i] : longest;
    out[i] = task.out + (row + i) * task.out_stride + head * task.head_dim;
    const float* q = task.q + (row + i) * task.q_stride + head * task.head_dim;
    for (int64_t d = 0; d < task.head_dim; ++d) scaled[i * task.head_dim + d] = q[d] * task.scale;
  }
  for (int64_t j = 0; j < longest; j += kLanes)
    score_page<QUERIES>(key_page(task, j, head), scaled, task.head_dim, scores + j, stride);
  float inverse[QUERIES];
  for (int i = 0; i < QUERIES; ++i) {
    inverse[i] = softmax(scores + i * stride, count[i]);
    // A block's queries share the loop over the longest of them; the others' extra probabilities are zero,
    // and adding zero products changes no bit.
    for (int64_t j = (count[i] + kLanes - 1) / kLanes * kLanes; j < longest; ++j) scores[i * stride + j] = 0;
  }
  for (int64_t d = 0; d < task.head_dim; d += kLanes)
    mix_values<QUERIES>(task, head, scores, stride, longest, d, inverse, out);
}

static void attend(const AttentionTask& task, int64_t head, int64_t first_row, int64_t last_row) {
  int64_t row = first_row;
  for (; row + 4 <= last_row; row += 4) attend_block<4>(task, head, row);
  for (; row < last_row; ++row) attend_block<1>(task, head, row);
}

}  // namespace ballast::BALLAST_ISA
