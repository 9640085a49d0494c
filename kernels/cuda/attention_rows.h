// Attention of single query rows, in f32: decoding, and heads of any width.
//
// Work partition: a block owns one row, one head and 128 positions, a thread one position (scores) and then one value of the
// output. Blocks leave maximum, sum and weighted values in `parts`; the last one to arrive joins all in ascending order of
// positions, so results do not depend on which one that is.
#pragma once

#include "kernels/cuda/attention_codes.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"

namespace ballast::cuda {

struct AttendRows {
  static constexpr int kThreads = 128, kBlocks = 8;
  static constexpr int kPositions = kThreads;
  static_assert(kThreads == CodedPositions::kThreads);

  struct Args {
    const QueryRow* rows;
    KeySource keys;
    const float* q;
    int64_t q_stride;
    float scale;
    float* out;
    int64_t out_stride;
    float* parts;  ///< [rows · heads][blocks of the grid][2 + head_dim]
    int* arrived;  ///< [rows · heads], zeros; left so
  };
  static int64_t shared_bytes(int64_t head_dim, bool coded) {
    return (head_dim * 4 + 15) / 16 * 16 + kThreads * 4 + 48 +
           (coded ? CodedPositions::mix_floats(int(head_dim)) * 4 : 0);
  }

  static BALLAST_DEVICE void run(const Args& args) {
    const int head = dev::block_y() % args.keys.heads, index = dev::block_y() / args.keys.heads;
    const QueryRow row = args.rows[index];
    const int first = dev::block() * kPositions, blocks = (row.visible + kPositions - 1) / kPositions;
    if (dev::block() >= blocks) return;
    const int head_dim = args.keys.head_dim, thread = dev::thread();
    dev::SharedArena arena;
    const auto s_q = arena.take<float>(head_dim);
    const auto s_weights = arena.take<float>(kThreads);
    const auto s_partial = arena.take<float>(kThreads / dev::kWarp);
    const auto s_flag = arena.take<int>(4);
    const auto s_mix = arena.take<float>(args.keys.coded ? CodedPositions::mix_floats(head_dim) : 0);
    for (int d = thread; d < head_dim; d += kThreads)
      s_q.set(d, args.q[row.row * args.q_stride + head * head_dim + d] * args.scale);
    dev::sync_block();

    const int left = row.visible - first, count = left < kPositions ? left : kPositions;
    const CodedPositions coded{args.keys, row.pages, head, first, count};
    float score = -INFINITY;
    if (args.keys.coded) {
      score = coded.score(s_q);
    } else if (thread < count) {
      score = dot(args.keys, row, head, first + thread, s_q);
    }
    const float top = dev::block_max(score, s_partial);
    const float weight = thread < count ? dev::exp(score - top) : 0.0f;
    s_weights.set(thread, args.keys.coded && thread < count ? weight * coded.scale(1) : weight);
    const float sum = dev::block_sum(weight, s_partial);

    float* const part =
        args.parts + (int64_t(dev::block_y()) * dev::blocks() + dev::block()) * (2 + head_dim);
    if (args.keys.coded) {
      coded.mix(s_weights, s_mix, part + 2);
    } else {
      for (int d = thread; d < head_dim; d += kThreads) {
        float value = 0;
        for (int p = 0; p < count; ++p)
          value = dev::fma(s_weights.get(p), value_at(args.keys, row, head, first + p, d), value);
        part[2 + d] = value;
      }
    }
    if (thread == 0) part[0] = top, part[1] = sum;
    dev::fence();
    dev::sync_block();
    if (thread == 0) s_flag.set(0, dev::atomic_add(args.arrived + dev::block_y(), 1));
    dev::sync_block();
    if (s_flag.get(0) + 1 != blocks) return;
    if (thread == 0) args.arrived[dev::block_y()] = 0;
    dev::fence();
    join(args, row, head, blocks);
  }

 private:
  static BALLAST_DEVICE const float* page(const KeySource& keys, const QueryRow& row, int head, int position,
                                          int which) {
    const int64_t number = keys.pages[row.pages + position / kCachePage];
    return static_cast<const float*>(keys.cache) +
           ((number * 2 + which) * keys.heads + head) * (int64_t(keys.head_dim) * kCachePage);
  }

  static BALLAST_DEVICE float dot(const KeySource& keys, const QueryRow& row, int head, int position,
                                  dev::Shared<float> s_q) {
    float sum = 0;
    if (keys.cache) {
      const float* key = page(keys, row, head, position, 0) + position % kCachePage;
      for (int d = 0; d < keys.head_dim; ++d) sum = dev::fma(s_q.get(d), key[d * kCachePage], sum);
    } else {
      const float* key = keys.k + (row.first + position) * keys.k_stride + head * keys.head_dim;
      for (int d = 0; d < keys.head_dim; ++d) sum = dev::fma(s_q.get(d), key[d], sum);
    }
    return sum;
  }

  static BALLAST_DEVICE float value_at(const KeySource& keys, const QueryRow& row, int head, int position,
                                       int d) {
    if (keys.cache) return page(keys, row, head, position, 1)[position % kCachePage * keys.head_dim + d];
    return keys.v[(row.first + position) * keys.v_stride + head * keys.head_dim + d];
  }

  static BALLAST_DEVICE void join(const Args& args, const QueryRow& row, int head, int blocks) {
    const int head_dim = args.keys.head_dim;
    const float* parts = args.parts + int64_t(dev::block_y()) * dev::blocks() * (2 + head_dim);
    float top = -INFINITY;
    for (int b = 0; b < blocks; ++b)
      top = dev::max(top, dev::load_shared_by_blocks(parts + b * (2 + head_dim)));
    float sum = 0;
    for (int b = 0; b < blocks; ++b) {
      const float* part = parts + b * (2 + head_dim);
      sum += dev::exp(dev::load_shared_by_blocks(part) - top) * dev::load_shared_by_blocks(part + 1);
    }
    for (int d = dev::thread(); d < head_dim; d += kThreads) {
      float value = 0;
      for (int b = 0; b < blocks; ++b) {
        const float* part = parts + b * (2 + head_dim);
        value = dev::fma(dev::exp(dev::load_shared_by_blocks(part) - top),
                         dev::load_shared_by_blocks(part + 2 + d), value);
      }
      args.out[row.row * args.out_stride + head * head_dim + d] = value / sum;
    }
  }
};

/// New keys and values into the cache. Work partition: a block owns a row of the batch, a thread every 128th value.
struct AppendRows {
  static constexpr int kThreads = 128, kBlocks = 8;
  struct Args {
    const CachePlace* places;
    const float* k;
    const float* v;
    int64_t k_stride, v_stride;
    float* cache;
    int heads, head_dim;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int row = dev::block(), width = args.heads * args.head_dim;
    const CachePlace place = args.places[row];
    for (int i = dev::thread(); i < width; i += kThreads) {
      const int head = i / args.head_dim, d = i % args.head_dim;
      const int64_t page_floats = int64_t(args.head_dim) * 16;
      float* keys = args.cache + (int64_t(place.page) * 2 * args.heads + head) * page_floats;
      float* values = keys + args.heads * page_floats;
      keys[d * 16 + place.offset] = args.k[row * args.k_stride + i];
      values[place.offset * args.head_dim + d] = args.v[row * args.v_stride + i];
    }
  }
};

}  // namespace ballast::cuda
