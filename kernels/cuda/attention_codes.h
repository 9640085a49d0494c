// A key/value cache of signed bytes with a scale for each position and head (ops/attention.h): writing it, and what single
// query rows make of it. The codes and scales are those of the CPU backend, bit for bit.
//
// Codes are read 16 or four at a time, for a row waits for bytes, and become floats as a mantissa beside 2^23: conversions
// have a quarter of the rate. Scales of keys go to the scores, those of values to the weights.
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device.h"

namespace ballast::cuda {

/// What a page of codes holds of one head's keys (which = 0) or values (1): 16 · head_dim codes, then 16 scales. `pages` as
/// in QueryRow. 16-byte aligned.
BALLAST_DEVICE const char* coded_page(const KeySource& keys, int pages, int head, int position, int which) {
  const int64_t number = keys.pages[pages + position / kCachePage];
  return static_cast<const char*>(keys.cache) +
         ((number * 2 + which) * keys.heads + head) * (kCachePage * (int64_t(keys.head_dim) + 4));
}
BALLAST_DEVICE const float* page_scales(const char* page, int head_dim) {
  return reinterpret_cast<const float*>(page + kCachePage * head_dim);
}

/// Byte `i` of four codes.
BALLAST_DEVICE float code_of(uint32_t codes, int i) {
  // 2^23 + 128 + code.
  const uint32_t bits = dev::permute_bytes(codes ^ 0x80808080u, 0x4b000000u, 0x7440u + uint32_t(i));
  return dev::float_of(bits) - 8388736.0f;
}
/// Codes d to d + 3 of a position's values, zeros beyond head_dim.
BALLAST_DEVICE uint32_t value_codes(const char* page, int head_dim, int place, int d) {
  const char* from = page + place * head_dim + d;
  if (head_dim % 4 == 0) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t codes = 0;
  for (int i = 0; i < 4 && d + i < head_dim; ++i) codes |= uint32_t(uint8_t(from[i])) << 8 * i;
  return codes;
}

/// One row's view of up to 128 positions from `first` on; called by all of the block's 128 threads.
struct CodedPositions {
  const KeySource& keys;
  int pages, head, first, count;
  static constexpr int kThreads = 128;

  BALLAST_BOTH static constexpr int quads(int head_dim) { return (head_dim + 3) / 4; }
  /// So many threads share the positions of four dimensions.
  BALLAST_BOTH static constexpr int slices(int head_dim) {
    return quads(head_dim) < kThreads ? kThreads / quads(head_dim) : 1;
  }
  BALLAST_BOTH static constexpr int mix_floats(int head_dim) {
    return 4 * quads(head_dim) * slices(head_dim);
  }

  /// Scale of this thread's position, which is one of `count`.
  BALLAST_DEVICE float scale(int which) const {
    return page_scales(coded_page(keys, pages, head, first + dev::thread(), which),
                       keys.head_dim)[(first + dev::thread()) % kCachePage];
  }

  /// q · key of this thread's position; anything beyond `count`. Sixteen threads read a page, each every 16th dimension of
  /// all its positions, and then give each other what belongs to their own.
  BALLAST_DEVICE float score(dev::Shared<float> s_q) const {
    const int part = dev::thread() % kCachePage, position = dev::thread() - part;
    float sums[kCachePage];
#pragma unroll
    for (int i = 0; i < kCachePage; ++i) sums[i] = 0;
    if (position < count) {
      const char* page = coded_page(keys, pages, head, first + position, 0);
      for (int d = part; d < keys.head_dim; d += kCachePage) {
        const dev::Words4 four = reinterpret_cast<const dev::Words4*>(page)[d];
        const float q = s_q.get(d);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[i] = dev::fma(q, code_of(four.x, i), sums[i]);
          sums[4 + i] = dev::fma(q, code_of(four.y, i), sums[4 + i]);
          sums[8 + i] = dev::fma(q, code_of(four.z, i), sums[8 + i]);
          sums[12 + i] = dev::fma(q, code_of(four.w, i), sums[12 + i]);
        }
      }
    }
    share<kCachePage / 2>(sums, part);
    return dev::thread() < count ? sums[0] * scale(0) : -INFINITY;
  }

  /// sums[d] = Σ weight · code over the positions, whose weights have the scales in them. Nothing of the block's may be
  /// pending on s_mix [mix_floats].
  BALLAST_DEVICE void mix(dev::Shared<float> s_weights, dev::Shared<float> s_mix, float* sums) const {
    const int head_dim = keys.head_dim, wide = quads(head_dim), cuts = slices(head_dim);
    for (int i = dev::thread(); i < wide * cuts; i += kThreads) {
      const int d = i % wide * 4;
      float four[4] = {0, 0, 0, 0};
      for (int p = i / wide; p < count; p += cuts) {
        const char* page = coded_page(keys, pages, head, first + p, 1);
        const uint32_t codes = value_codes(page, head_dim, (first + p) % kCachePage, d);
        const float weight = s_weights.get(p);
#pragma unroll
        for (int n = 0; n < 4; ++n) four[n] = dev::fma(weight, code_of(codes, n), four[n]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) s_mix.set(i / wide * 4 * wide + d + n, four[n]);
    }
    dev::sync_block();
    for (int d = dev::thread(); d < head_dim; d += kThreads) {
      float sum = s_mix.get(d);
      for (int slice = 1; slice < cuts; ++slice) sum += s_mix.get(slice * 4 * wide + d);
      sums[d] = sum;
    }
  }

 private:
  // Each step halves the positions that a thread has sums of, and doubles the threads that are in a sum.
  template <int Step>
  static BALLAST_DEVICE void share(float (&sums)[kCachePage], int part) {
    const bool upper = (part & Step) != 0;
#pragma unroll
    for (int i = 0; i < Step; ++i) {
      const float kept = upper ? sums[i + Step] : sums[i], given = upper ? sums[i] : sums[i + Step];
      sums[i] = kept + dev::shuffle_xor(given, Step);
    }
    if constexpr (Step > 1) share<Step / 2>(sums, part);
  }
};

/// New keys and values into a cache of codes. Work partition: a warp owns the keys or the values of one head of a row.
struct AppendCodes {
  static constexpr int kThreads = 128, kBlocks = 8, kWarps = kThreads / dev::kWarp;
  struct Args {
    const CachePlace* places;
    const float* k;
    const float* v;
    int64_t k_stride, v_stride;
    char* cache;
    int heads, head_dim;
  };
  static int64_t blocks_y(int64_t heads) { return (2 * heads + kWarps - 1) / kWarps; }

  static BALLAST_DEVICE void run(const Args& args) {
    const int vector = dev::block_y() * kWarps + dev::warp(), which = vector / args.heads,
              head = vector % args.heads;
    if (which > 1) return;
    const int row = dev::block(), dim = args.head_dim;
    const CachePlace place = args.places[row];
    const float* x = (which == 0 ? args.k + row * args.k_stride : args.v + row * args.v_stride) + head * dim;
    char* const page = args.cache + ((int64_t(place.page) * 2 + which) * args.heads + head) *
                                        (kCachePage * (int64_t(dim) + 4));
    char* const codes = page + (which == 0 ? place.offset : place.offset * dim);
    const int stride = which == 0 ? kCachePage : 1;

    // Sizes as whole numbers: of floats without a sign these are in the same order, and infinities and NaNs come last.
    int top = 0;
    for (int d = dev::lane(); d < dim; d += dev::kWarp) {
      const int size = int(dev::bits_of(x[d]) & 0x7fffffffu);
      top = size > top ? size : top;
    }
    for (int step = dev::kWarp / 2; step > 0; step /= 2) {
      const int other = dev::shuffle_xor(top, step);
      top = other > top ? other : top;
    }
    const bool finite = top < kInfinity, coded = finite && top >= kSmallest;
    const float largest = dev::float_of(uint32_t(top)), inverse = coded ? 127.0f / largest : 0.0f;
    for (int d = dev::lane(); d < dim; d += dev::kWarp)
      codes[d * stride] = char(coded ? int(dev::round_to_even(dev::multiply(x[d], inverse))) : 0);
    if (dev::lane() == 0)
      reinterpret_cast<float*>(page + kCachePage * dim)[place.offset] = coded    ? largest / 127.0f
                                                                        : finite ? 0.0f
                                                                                 : dev::float_of(kNotANumber);
  }

 private:
  static constexpr int kInfinity = 0x7f800000, kSmallest = 27 << 23;  // 2^-100
  static constexpr uint32_t kNotANumber = 0x7fc00000u;
};

}  // namespace ballast::cuda
