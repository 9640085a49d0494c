// Attention of many query rows at once on the tensor cores, for prompts and images: q, k, v and probabilities are rounded to
// f16, sums and softmax are f32 (the recurrence of FlashAttention-2, arXiv 2307.08691, algorithm 1).
//
// Work partition: a block owns 64 rows of one span and one head, a warp 16 of the rows. Positions come in steps of 64, whose
// keys and (turned) values the block rounds into shared memory. Scores, probabilities and sums never leave the registers.
#pragma once

#include "kernels/cuda/attention_codes.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"

namespace ballast::cuda {

template <int HeadDim>
struct AttendTiles {
  static_assert(HeadDim % 16 == 0);
  static constexpr int kWarps = 4, kThreads = kWarps * dev::kWarp, kBlocks = 1;
  static constexpr int kPositions = 64, kPage = kCachePage;
  static constexpr int kSteps = HeadDim / 16;
  // Rows start in different banks.
  static constexpr int kDimStride = HeadDim + 8, kPositionStride = kPositions + 8;
  static constexpr int64_t kSharedBytes = 2 * (2 * kQueryTile * kDimStride + HeadDim * kPositionStride);
  static_assert(kQueryTile == 16 * kWarps && kPositions == kQueryTile);

  struct Args {
    const QueryTile* tiles;
    KeySource keys;
    const float* q;
    int64_t q_stride;
    float scale;
    bool causal;
    float* out;
    int64_t out_stride;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    AttendTiles self(args);
    self.round_queries();
    const int end = args.causal ? self.tile_.position + self.tile_.rows : self.tile_.length;
    for (int first = 0; first < end; first += kPositions) self.add_positions(first, end);
    self.finish();
  }

 private:
  BALLAST_DEVICE explicit AttendTiles(const Args& args)
      : args_(args), tile_(args.tiles[dev::block()]), head_(dev::block_y()) {
    dev::SharedArena arena;
    s_q_ = arena.take<uint16_t>(kQueryTile * kDimStride);
    s_k_ = arena.take<uint16_t>(kPositions * kDimStride);
    s_v_ = arena.take<uint16_t>(HeadDim * kPositionStride);
#pragma unroll
    for (int n = 0; n < HeadDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[n][i] = 0;
  }

  /// A value beyond f16, an infinity or a NaN must not meet the probability 0 of a row that does not see it, so such values
  /// count as 0 at first; where there are any, the rows that see them get them in a second round.
  BALLAST_DEVICE void add_positions(int first, int end) {
    for (bool odd = false;; odd = true) {
      dev::sync_block();  // everybody is done with what lies in shared memory
      const bool mine = args_.keys.coded ? round_codes(first, end, odd) : round_keys(first, end, odd);
      const bool any = dev::sync_block_any(mine);
      odd ? add_odd_values(first) : step(first);
      if (odd || !any) return;
    }
  }

  static constexpr uint16_t kHalfInfinity = 0x7c00;
  static BALLAST_DEVICE bool is_odd(uint16_t half) {
    return (half & kHalfInfinity) == kHalfInfinity;
  }
  /// True for one beyond the numbers, which is stored as 0 unless asked for.
  BALLAST_DEVICE bool store_value(int at, float value, bool odd) const {
    const uint16_t half = dev::float_to_half(value);
    s_v_.set(at, is_odd(half) && !odd ? uint16_t(0) : half);
    return is_odd(half);
  }

  BALLAST_DEVICE void round_queries() {
    for (int i = dev::thread(); i < kQueryTile * HeadDim; i += kThreads) {
      const int row = i / HeadDim, d = i % HeadDim;
      const float q = row < tile_.rows
                          ? args_.q[(tile_.row + row) * args_.q_stride + head_ * HeadDim + d] * args_.scale
                          : 0.0f;
      s_q_.set(row * kDimStride + d, dev::float_to_half(q));
    }
  }

  /// Positions [first, first + 64), zeros from `end` on; `odd`, result: see store_value.
  BALLAST_DEVICE bool round_keys(int first, int end, bool odd) {
    const KeySource& keys = args_.keys;
    bool any = false;
    for (int i = dev::thread(); i < kPositions * HeadDim; i += kThreads) {
      // Neighbouring threads read neighbouring memory: keys of a page lie position by position, values dimension by dimension.
      const int page = i / (kPage * HeadDim), within = i % (kPage * HeadDim);
      const int key_p = keys.cache ? kPage * page + within % kPage : i / HeadDim;
      const int key_d = keys.cache ? within / kPage : i % HeadDim;
      const int value_p = keys.cache ? kPage * page + within / HeadDim : i / HeadDim, value_d = i % HeadDim;
      s_k_.set(key_p * kDimStride + key_d,
               dev::float_to_half(first + key_p < end ? value(0, first, key_p, key_d, page, within) : 0.0f));
      any |= store_value(value_d * kPositionStride + value_p,
                         first + value_p < end ? value(1, first, value_p, value_d, page, within) : 0.0f, odd);
    }
    return any;
  }

  /// The same from a cache of codes, four at a time: of a page's keys at four positions, of its values four dimensions.
  BALLAST_DEVICE bool round_codes(int first, int end, bool odd) {
    bool any = false;
    constexpr int kWordsOfPage = kPage * HeadDim / 4, kWordsOfValue = HeadDim / 4;
    for (int i = dev::thread(); i < kPositions / kPage * kWordsOfPage; i += kThreads) {
      const int page = i / kWordsOfPage, word = i % kWordsOfPage, left = end - first - kPage * page;
      const int key_p = word % 4 * 4, key_d = word / 4;
      const int value_p = word / kWordsOfValue, value_d = word % kWordsOfValue * 4;
      uint32_t key_codes = 0, value_codes = 0;
      dev::Floats4 key_scales{0, 0, 0, 0};
      float value_scale = 0;
      if (left > 0) {
        const char* keys = coded_page(args_.keys, tile_.pages, head_, first + kPage * page, 0);
        const char* values = coded_page(args_.keys, tile_.pages, head_, first + kPage * page, 1);
        key_codes = reinterpret_cast<const uint32_t*>(keys)[word];
        key_scales = reinterpret_cast<const dev::Floats4*>(page_scales(keys, HeadDim))[word % 4];
        value_codes = reinterpret_cast<const uint32_t*>(values)[word];
        value_scale = page_scales(values, HeadDim)[value_p];
      }
      const float scales[4] = {key_scales.x, key_scales.y, key_scales.z, key_scales.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float key = key_p + n < left ? scales[n] * code_of(key_codes, n) : 0.0f;
        const float value = value_p < left ? value_scale * code_of(value_codes, n) : 0.0f;
        s_k_.set((kPage * page + key_p + n) * kDimStride + key_d, dev::float_to_half(key));
        any |= store_value((value_d + n) * kPositionStride + kPage * page + value_p, value, odd);
      }
    }
    return any;
  }

  BALLAST_DEVICE float value(int which, int first, int p, int d, int page, int within) const {
    const KeySource& keys = args_.keys;
    if (keys.cache) {
      const int64_t number = keys.pages[tile_.pages + first / kPage + page];
      return static_cast<const float*>(
          keys.cache)[((number * 2 + which) * keys.heads + head_) * (kPage * HeadDim) + within];
    }
    const int64_t row = tile_.first + first + p;
    return which == 0 ? keys.k[row * keys.k_stride + head_ * HeadDim + d]
                      : keys.v[row * keys.v_stride + head_ * HeadDim + d];
  }

  /// B operands of two tiles of eight rows and one step of 16 columns of what lies in shared memory.
  static BALLAST_DEVICE void load_pair(uint32_t (&b)[4], dev::Shared<uint16_t> s_rows, int stride, int row,
                                       int column) {
    const int lane = dev::lane();
    dev::load_matrices(b, s_rows.from((row + lane / 16 * 8 + lane % 8) * stride + column + lane / 8 % 2 * 8));
  }

  BALLAST_DEVICE void step(int first) {
    float scores[kPositions / 8][4];
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0;
    const int lane = dev::lane();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t a[4], b[4];
      dev::load_matrices(a, s_q_.from((16 * dev::warp() + lane % 16) * kDimStride + 16 * k + lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < kPositions / 8; n += 2) {
        load_pair(b, s_k_, kDimStride, 8 * n, 16 * k);
        dev::multiply_add<dev::F16>(scores[n], a, b[0], b[1]);
        dev::multiply_add<dev::F16>(scores[n + 1], a, b[2], b[3]);
      }
    }
    weigh(scores, first);
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
      // Where a lane's probabilities lie as sums is where they are wanted as an operand.
      const uint32_t a[4] = {dev::pack_halves<dev::F16>(scores[2 * k][0], scores[2 * k][1]),
                             dev::pack_halves<dev::F16>(scores[2 * k][2], scores[2 * k][3]),
                             dev::pack_halves<dev::F16>(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                             dev::pack_halves<dev::F16>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
      uint32_t b[4];
#pragma unroll
      for (int n = 0; n < HeadDim / 8; n += 2) {
        load_pair(b, s_v_, kPositionStride, 8 * n, 16 * k);
        dev::multiply_add<dev::F16>(out_[n], a, b[0], b[1]);
        dev::multiply_add<dev::F16>(out_[n + 1], a, b[2], b[3]);
      }
    }
  }

  /// Of the row lane / 4 + 8 · half.
  BALLAST_DEVICE int last_seen(int half) const {
    return args_.causal ? tile_.position + 16 * dev::warp() + dev::lane() / 4 + 8 * half : tile_.length - 1;
  }

  /// Probabilities are no less than 0, so the sum becomes what such a value is, whatever the probability.
  BALLAST_DEVICE void add_odd_values(int first) {
    const int t = 2 * (dev::lane() % 4);
    for (int p = 0; p < kPositions; ++p)
#pragma unroll
      for (int n = 0; n < HeadDim / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const uint16_t value = s_v_.get((8 * n + t + e) * kPositionStride + p);
          if (!is_odd(value)) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (first + p <= last_seen(half)) out_[n][2 * half + e] += dev::half_to_float(value);
        }
  }

  /// Scores become probabilities relative to the largest score so far, and what was summed before is brought to it.
  BALLAST_DEVICE void weigh(float (&scores)[kPositions / 8][4], int first) {
    const int t = 2 * (dev::lane() % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last = last_seen(half);
      float top = tops_[half];
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[n][2 * half + e];
          if (first + 8 * n + t + e > last) score = -INFINITY;
          top = dev::max(top, score);
        }
      top = dev::max(top, dev::shuffle_xor(top, 1));
      top = dev::max(top, dev::shuffle_xor(top, 2));
      const float kept = dev::exp(tops_[half] - top);
      tops_[half] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[n][2 * half + e];
          score = dev::exp(score - top);
          sum += score;
        }
      sums_[half] = dev::fma(sums_[half], kept, sum);
#pragma unroll
      for (int n = 0; n < HeadDim / 8; ++n) out_[n][2 * half] *= kept, out_[n][2 * half + 1] *= kept;
    }
  }

  BALLAST_DEVICE void finish() {
    const int r = dev::lane() / 4, t = 2 * (dev::lane() % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums_[half];
      sum += dev::shuffle_xor(sum, 1);
      sum += dev::shuffle_xor(sum, 2);
      const int row = 16 * dev::warp() + r + 8 * half;
      if (row >= tile_.rows) continue;
      float* to = args_.out + (tile_.row + row) * args_.out_stride + head_ * HeadDim + t;
#pragma unroll
      for (int n = 0; n < HeadDim / 8; ++n)
        to[8 * n] = out_[n][2 * half] / sum, to[8 * n + 1] = out_[n][2 * half + 1] / sum;
    }
  }

  const Args& args_;
  const QueryTile tile_;
  const int head_;
  dev::Shared<uint16_t> s_q_, s_k_, s_v_;
  float out_[HeadDim / 8][4];
  // Of the rows lane / 4 and lane / 4 + 8. Position 0 is seen by every row, so the first step leaves no -infinity.
  float tops_[2] = {-INFINITY, -INFINITY};
  float sums_[2] = {0, 0};
};

}  // namespace ballast::cuda
