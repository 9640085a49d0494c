// Attention over whole sequences whose probabilities are rounded to a grid before they meet the values, in f32: a probability
// near the middle between two codes then falls where it falls on the CPU, but for roundings of f32.
//
// A code is chosen from the probability itself, not from what it is beside the largest score so far, so positions are walked
// twice: for the largest score and the sum, then for probabilities and values. Scores are computed both times.
//
// Work partition: a block owns up to eight rows of one span and one head. Positions come in steps of 128; a thread has one for
// all rows (scores) and then one dimension for four rows (values).
#pragma once

#include "kernels/cuda/activation_grid.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"

namespace ballast::cuda {

struct AttendRounded {
  static constexpr int kThreads = 128, kBlocks = 4, kPositions = kThreads;
  static constexpr int kRows = 8, kFours = kRows / 4;

  struct Args {
    const QueryTile* tiles;  ///< of kRows rows
    KeySource keys;          ///< without a cache
    const float* q;
    int64_t q_stride;
    float scale;
    bool causal;
    GridNumbers grid;
    float* out;
    int64_t out_stride;
  };
  static int64_t shared_bytes(int64_t head_dim) {
    return 4 * kRows * (2 * head_dim + kPositions) + 4 * kThreads / dev::kWarp;
  }

  static BALLAST_DEVICE void run(const Args& args) {
    AttendRounded self(args);
    float tops[kRows], inverses[kRows];
    self.load_queries();
    dev::sync_block();
    self.total(tops, inverses);
    for (int first = 0; first < self.end_; first += kPositions) {
      self.weigh(first, tops, inverses);
      dev::sync_block();
      self.mix(first);
      dev::sync_block();
    }
    self.finish();
  }

 private:
  BALLAST_DEVICE explicit AttendRounded(const Args& args)
      : args_(args),
        tile_(args.tiles[dev::block()]),
        head_(dev::block_y()),
        dim_(args.keys.head_dim),
        end_(args.causal ? tile_.position + tile_.rows : tile_.length) {
    dev::SharedArena arena;
    s_q_ = arena.take<dev::Floats4>(kFours * dim_);
    s_weights_ = arena.take<dev::Floats4>(kFours * kPositions);
    s_out_ = arena.take<dev::Floats4>(kFours * dim_);
    s_partial_ = arena.take<float>(kThreads / dev::kWarp);
  }

  // [dimension][row]: a thread reads one dimension of all rows.
  BALLAST_DEVICE void load_queries() {
    const auto s_numbers = s_q_.as<float>();
    for (int i = dev::thread(); i < kRows * dim_; i += kThreads) {
      const int row = i / dim_, d = i % dim_;
      s_numbers.set(d * kRows + row,
                    row < tile_.rows
                        ? args_.q[(tile_.row + row) * args_.q_stride + head_ * dim_ + d] * args_.scale
                        : 0.0f);
    }
  }

  BALLAST_DEVICE void score(int position, float (&scores)[kRows]) const {
    const float* key = args_.keys.k + (tile_.first + position) * args_.keys.k_stride + head_ * dim_;
#pragma unroll
    for (int row = 0; row < kRows; ++row) scores[row] = 0;
    for (int d = 0; d < dim_; ++d) {
      const float k = key[d];
#pragma unroll
      for (int n = 0; n < kFours; ++n) {
        const dev::Floats4 q = s_q_.get(kFours * d + n);
        scores[4 * n] = dev::fma(q.x, k, scores[4 * n]);
        scores[4 * n + 1] = dev::fma(q.y, k, scores[4 * n + 1]);
        scores[4 * n + 2] = dev::fma(q.z, k, scores[4 * n + 2]);
        scores[4 * n + 3] = dev::fma(q.w, k, scores[4 * n + 3]);
      }
    }
  }
  BALLAST_DEVICE bool sees(int row, int position) const {
    return position < end_ && (!args_.causal || position <= tile_.position + row);
  }

  /// Largest score of each row and one over the sum of exponentials beside it, the same in all threads.
  BALLAST_DEVICE void total(float (&tops)[kRows], float (&inverses)[kRows]) const {
    float sums[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) tops[row] = -INFINITY, sums[row] = 0;
    for (int position = dev::thread(); position < end_; position += kThreads) {
      float scores[kRows];
      score(position, scores);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (!sees(row, position)) continue;
        const float top = dev::max(tops[row], scores[row]);
        sums[row] = dev::fma(sums[row], dev::exp(tops[row] - top), dev::exp(scores[row] - top));
        tops[row] = top;
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float top = dev::block_max(tops[row], s_partial_);
      inverses[row] = 1.0f / dev::block_sum(sums[row] * dev::exp(tops[row] - top), s_partial_);
      tops[row] = top;
    }
  }

  /// Rounded probabilities of this thread's position.
  BALLAST_DEVICE void weigh(int first, const float (&tops)[kRows], const float (&inverses)[kRows]) const {
    const int position = first + dev::thread();
    float weights[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) weights[row] = 0;
    if (position < end_) {
      float scores[kRows];
      score(position, scores);
#pragma unroll
      for (int row = 0; row < kRows; ++row)
        if (sees(row, position))
          weights[row] = args_.grid.round(dev::exp(scores[row] - tops[row]) * inverses[row]);
    }
#pragma unroll
    for (int n = 0; n < kFours; ++n)
      s_weights_.set(kFours * dev::thread() + n,
                     {weights[4 * n], weights[4 * n + 1], weights[4 * n + 2], weights[4 * n + 3]});
  }

  // Each sum has one thread, which keeps it in shared memory from step to step.
  BALLAST_DEVICE void mix(int first) const {
    const int count = end_ - first < kPositions ? end_ - first : kPositions;
    for (int i = dev::thread(); i < kFours * dim_; i += kThreads) {
      const int d = i % dim_, n = i / dim_;
      const float* value = args_.keys.v + (tile_.first + first) * args_.keys.v_stride + head_ * dim_ + d;
      dev::Floats4 sum{0, 0, 0, 0};
      if (first > 0) sum = s_out_.get(i);
      for (int p = 0; p < count; ++p) {
        const float v = value[p * args_.keys.v_stride];
        const dev::Floats4 weight = s_weights_.get(kFours * p + n);
        // An infinity or a NaN must not meet the weight 0 of a row that does not see it.
        const bool all = dev::is_finite(v) || !args_.causal;
        const auto add = [&](float& to, float factor, int row) {
          if (all || sees(row, first + p)) to = dev::fma(factor, v, to);
        };
        add(sum.x, weight.x, 4 * n), add(sum.y, weight.y, 4 * n + 1);
        add(sum.z, weight.z, 4 * n + 2), add(sum.w, weight.w, 4 * n + 3);
      }
      s_out_.set(i, sum);
    }
  }

  BALLAST_DEVICE void finish() const {
    for (int i = dev::thread(); i < kFours * dim_; i += kThreads) {
      const dev::Floats4 sum = s_out_.get(i);
      const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
      const int d = i % dim_, first = i / dim_ * 4;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (first + n < tile_.rows)
          args_.out[(tile_.row + first + n) * args_.out_stride + head_ * dim_ + d] = sums[n];
    }
  }

  const Args& args_;
  const QueryTile tile_;
  const int head_, dim_, end_;
  dev::Shared<dev::Floats4> s_q_, s_weights_, s_out_;
  dev::Shared<float> s_partial_;
};

}  // namespace ballast::cuda
