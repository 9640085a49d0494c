// Linear layers with residual binary codes as integer sums beside int8 activations, one instruction set (see simd.h).
//
// With bits b0 and b1 of a code and digits d of the activations (one plane, plane_split.h) a row's chunk is, over its plain
// columns with (mean_g, scale_g) and its salient ones with (mean, scale_1, scale_2),
//
//   plain     (m0 − s0)·Σd + 2·s0·Σ b0·d + ((m1 − s1) − (m0 − s0))·Σ b1·d + 2·(s1 − s0)·Σ b0·b1·d
//   salient   (mean − s1 − s2)·Σd + 2·s1·Σ b0·d + 2·s2·Σ b1·d
//
// The sums are exact integers; what is rounded is written once, in `add_chunk`, chunks ascending, so that a result is the
// same in any batch and on any instruction set. Layout: binary_layout.h.
#pragma once

#include "kernels/cpu/binary_layout.h"
#include "kernels/cpu/plane_kernels.h"
#include "kernels/cpu/plane_split.h"

namespace ballast::BALLAST_ISA {

// Fills PlaneBlocks as SplitTask does, but digits [chunk][block][BinaryChunk::steps()][token in block] in the order of the
// packed codes, and two sums, −Σ digit of plain and of salient columns.
static void split_binary(const SplitTask& task, int64_t first_block, int64_t last_block) {
  for (int64_t index = first_block; index < last_block; ++index) {
    const int64_t block = index * kPlaneColumns;
    const int64_t width = task.tokens - block < kPlaneColumns ? task.tokens - block : kPlaneColumns;
    for (int64_t token = block; token < block + width; ++token) {
      const float* x = task.x + token * task.token_stride;
      int32_t* digits = task.out.digits;
      uint32_t most_of_all = 0;
      each_binary_chunk(task.in_features, task.group_size, [&](const BinaryChunk& chunk) {
        const uint8_t* order = task.binary_order + chunk.order;
        const int64_t plain = order[0] * kUnitColumns, places = plain + order[1] * kUnitColumns;
        float columns[kChunk + 1], ordered[kChunk + 2 * kUnitColumns];
        for (int64_t k = 0; k < chunk.columns; ++k) columns[k] = x[chunk.first + k];
        columns[kNoColumn] = 0;
        for (int64_t i = 0; i < places; ++i) ordered[i] = columns[order[2 + i]];
        const uint32_t most = largest_bits(ordered, places);
        if (most > most_of_all) most_of_all = most;
        Quantum scale = {0, 0};
        if (most >= 0x7F800000u) {
          for (int64_t i = 0; i < places; ++i) ordered[i] = 0;
        } else {
          scale = quantum(most, 1, 2);
        }
        const int64_t at = chunk.index * task.tokens + token;
        int32_t* out = digits + block * chunk.steps() + (token - block);
        int32_t sums[2];
        put_digits<1, false>(ordered, plain / 4, scale.inverse, width, out, sums);
        put_digits<1, false>(ordered + plain, (places - plain) / 4, scale.inverse, width,
                             out + plain / 4 * width, sums + 1);
        task.out.steps[at] = scale.step;
        task.out.sums[2 * at] = -sums[0];
        task.out.sums[2 * at + 1] = -sums[1];
        digits += task.tokens * chunk.steps();
      });
      task.out.special[token] = most_of_all >= 0x7F800000u;
    }
  }
}

struct BinaryFacts {
  F plain[4], salient[3];  // beside Σd, Σ b0·d, Σ 2·b1·d, Σ b0·b1·d
};
static inline BinaryFacts binary_facts(const uint8_t* at) {
  F c[kBinaryCoefficients];
  for (int i = 0; i < kBinaryCoefficients; ++i)
    c[i] = load_half(reinterpret_cast<const uint16_t*>(at) + i * kTileRows);
  const F low = sub(c[3], c[4]), high = sub(c[5], c[6]), two = broadcast(2);
  return {{low, mul(two, c[4]), mul(broadcast(0.5f), sub(high, low)), mul(two, sub(c[6], c[4]))},
          {sub(sub(c[0], c[1]), c[2]), mul(two, c[1]), c[2]}};
}

// Step i of a unit: its codes' first bits, twice their second bits, and where both are set, at the lowest bits of their
// bytes.
template <int I>
static inline V bits_of_step(V v, int bits) {
  if constexpr (I == 0) return mask(v, bits);
  if constexpr (I != 0) return mask(right<2 * I>(v), bits);
}
template <class Body>
static inline __attribute__((always_inline)) void each_binary_step(const uint8_t* p, Body&& body) {
  const V v = load_codes64(p), both = meet(v, right<1>(v));
  body(0, bits_of_step<0>(v, 1), bits_of_step<0>(v, 2), bits_of_step<0>(both, 1));
  body(1, bits_of_step<1>(v, 1), bits_of_step<1>(v, 2), bits_of_step<1>(both, 1));
  body(2, bits_of_step<2>(v, 1), bits_of_step<2>(v, 2), bits_of_step<2>(both, 1));
  body(3, bits_of_step<3>(v, 1), bits_of_step<3>(v, 2), bits_of_step<3>(both, 1));
}
// The same times 4^i where that saves work (see each_step_in_place).
template <bool IN_PLACE, class Body>
static inline __attribute__((always_inline)) void each_binary_step_of(const uint8_t* p, Body&& body) {
  if constexpr (IN_PLACE) {
    const V v = load_codes64(p), both = meet(v, right<1>(v));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) body(i, mask(v, 1 << 2 * i), mask(v, 2 << 2 * i), mask(both, 1 << 2 * i));
  } else {
    each_binary_step(p, body);
  }
}

// Tokens whose sums fit in registers while codes are unpacked there, too.
#if defined(BALLAST_AVX512)
inline constexpr int kFewBinaryTokens = 4;
#elif defined(BALLAST_AVX2)
inline constexpr int kFewBinaryTokens = 2;
#else
inline constexpr int kFewBinaryTokens = 1;
#endif

// Σ over the units of one sort of columns, KINDS sums for each token; x: [step][TOKENS]. A pair of products is at most
// 2·2·128 in size and a chunk has at most 32 steps of a sort, so that 16 bits hold a sum.
template <int KINDS, int TOKENS>
static inline void dot_bits(const uint8_t* codes, int64_t units, const int32_t* x, Sums (*sums)[TOKENS]) {
  constexpr int kCount = TOKENS <= 2 ? kChains<TOKENS> : 1;
#if defined(BALLAST_AVX512)
  constexpr bool kInPlace = kCount == 4;
#else
  constexpr bool kInPlace = false;
#endif
  Bytes partial[kCount][KINDS][TOKENS];
  for (auto& turn : partial)
    for (auto& kind : turn)
      for (Bytes& sum : kind) sum = no_bytes();
  for (; units > 0; --units, codes += kVectorBytes, x += 4 * TOKENS) {
    __builtin_prefetch(codes + kPrefetchBytes);
    each_binary_step_of<kInPlace>(
        codes, [&](int i, V first, V second, V both) __attribute__((always_inline)) {
          auto& turn = partial[i % kCount];
          for (int t = 0; t < TOKENS; ++t) {
            dot_bytes(turn[0][t], first, x[i * TOKENS + t]);
            dot_bytes(turn[1][t], second, x[i * TOKENS + t]);
            if constexpr (KINDS == 3) dot_bytes(turn[2][t], both, x[i * TOKENS + t]);
          }
        });
  }
  for (int kind = 0; kind < KINDS; ++kind)
    for (int t = 0; t < TOKENS; ++t) {
      sums[kind][t] = no_sums();
      for (int turn = 0; turn < kCount; ++turn) {
#if defined(BALLAST_AVX512)
        if constexpr (kInPlace) partial[turn][kind][t] = right_sums(partial[turn][kind][t], 2 * turn);
#endif
        flush(sums[kind][t], partial[turn][kind][t]);
      }
    }
}

// Sums of all tokens of a block in one chunk: Σ b0·d, Σ 2·b1·d, Σ b0·b1·d of plain columns, the first two of salient ones.
template <int TOKENS>
struct BinarySums {
  Sums plain[3][TOKENS], salient[2][TOKENS];
};
template <int TOKENS>
static inline F add_chunk(const BinaryFacts& facts, const int32_t* minus_totals,
                          const BinarySums<TOKENS>& sums, int t, float step, F y) {
  F value = mul(facts.plain[0], broadcast(float(-minus_totals[2 * t])));
  for (int i = 0; i < 3; ++i) value = fma(facts.plain[i + 1], to_float(sums.plain[i][t]), value);
  value = fma(facts.salient[0], broadcast(float(-minus_totals[2 * t + 1])), value);
  for (int i = 0; i < 2; ++i) value = fma(facts.salient[i + 1], to_float(sums.salient[i][t]), value);
  return fma(value, broadcast(step), y);
}

// All tokens of a task.
template <int TOKENS>
static void binary_of_few_tokens(const LinearTask& task, int64_t tile) {
  const TiledWeight& weight = task.weight;
  const uint8_t* const at = weight.data + tile * weight.tile_bytes;
  const int32_t* x = task.planes.digits;
  BinaryFacts facts = binary_facts(at);
  F y[TOKENS];
  for (F& value : y) value = broadcast(0);
  each_binary_chunk(weight.in_features, weight.group_size, [&](const BinaryChunk& chunk) {
    if (chunk.begins_block && chunk.first > 0) facts = binary_facts(at + chunk.facts);
    const uint8_t* const order = weight.binary_order + chunk.order;
    const uint8_t* const codes = at + chunk.codes;
    BinarySums<TOKENS> sums;
    dot_bits<3, TOKENS>(codes, order[0], x, sums.plain);
    dot_bits<2, TOKENS>(codes + order[0] * kVectorBytes, order[1], x + 4 * order[0] * TOKENS, sums.salient);
    for (int t = 0; t < TOKENS; ++t)
      y[t] = add_chunk(facts, task.planes.sums + 2 * chunk.index * TOKENS, sums, t,
                       task.planes.steps[chunk.index * TOKENS + t], y[t]);
    x += TOKENS * chunk.steps();
  });
  float partial[TOKENS * kTileRows];
  for (int t = 0; t < TOKENS; ++t) store(partial + t * kTileRows, y[t]);
  write_tile(task, tile, 0, TOKENS, partial);
}
template <int TOKENS = kFewBinaryTokens>
static inline void binary_of_any_few_tokens(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if constexpr (TOKENS > 0) {
    if (task.tokens != TOKENS) return binary_of_any_few_tokens<TOKENS - 1>(task, first_tile, last_tile);
    for (int64_t tile = first_tile; tile < last_tile; ++tile) binary_of_few_tokens<TOKENS>(task, tile);
  }
}

// One unpacked chunk: steps of the first bits, then of the second ones, then of both, plain columns and then salient ones.
struct BinaryTask {
  const uint8_t *plain, *salient;
  int64_t plain_steps, salient_steps;
  const int32_t* x;
  const int32_t* minus_totals;
  const float* scale_steps;
  const BinaryFacts* facts;
  bool fresh;
  float* partial;
};
template <int TOKENS>
static void binary_of_block(const BinaryTask& task) {
  BinarySums<TOKENS> sums;
  for (auto& kind : sums.plain)
    for (Sums& sum : kind) sum = no_sums();
  for (auto& kind : sums.salient)
    for (Sums& sum : kind) sum = no_sums();
  for (int64_t kind = 0; kind < 3; ++kind)
    dot_unpacked<2, TOKENS>(task.plain + kind * task.plain_steps * kVectorBytes, task.plain_steps, task.x,
                            sums.plain[kind]);
  for (int64_t kind = 0; kind < 2; ++kind)
    dot_unpacked<2, TOKENS>(task.salient + kind * task.salient_steps * kVectorBytes, task.salient_steps,
                            task.x + task.plain_steps * TOKENS, sums.salient[kind]);
  for (int t = 0; t < TOKENS; ++t) {
    float* to = task.partial + t * kTileRows;
    store(to, add_chunk(*task.facts, task.minus_totals, sums, t, task.scale_steps[t],
                        task.fresh ? broadcast(0) : load(to)));
  }
}
template <int TOKENS = kPlaneColumns>
static inline void binary_of_any_block(int64_t tokens, const BinaryTask& task) {
  if constexpr (TOKENS > 0) {
    if (tokens == TOKENS) return binary_of_block<TOKENS>(task);
    binary_of_any_block<TOKENS - 1>(tokens, task);
  }
}

static void unpack_bits(const uint8_t* codes, int64_t units, int kinds, uint8_t* out) {
  const int64_t sort = 4 * units * kVectorBytes;
  for (int64_t unit = 0; unit < units; ++unit, out += 4 * kVectorBytes)
    each_binary_step(codes + unit * kVectorBytes, [&](int i, V first, V second, V both) {
      store_step(out + i * kVectorBytes, first);
      store_step(out + sort + i * kVectorBytes, second);
      if (kinds == 3) store_step(out + 2 * sort + i * kVectorBytes, both);
    });
}

static void binary_of_tokens(const LinearTask& task, int64_t tile, int64_t first, int64_t last) {
  constexpr int64_t kSteps = 4 * binary_units(kChunk);
  static_assert(3 * kSteps * kVectorBytes + kTokenChunk * kTileRows * 4 <= linear_scratch_floats() * 4);
  const TiledWeight& weight = task.weight;
  const uint8_t* const at = weight.data + tile * weight.tile_bytes;
  uint8_t* const unpacked = reinterpret_cast<uint8_t*>(task.scratch);
  float* const partial = task.scratch + 3 * kSteps * kVectorBytes / int64_t(sizeof(float));
  const int32_t* x = task.planes.digits;
  BinaryFacts facts = binary_facts(at);
  each_binary_chunk(weight.in_features, weight.group_size, [&](const BinaryChunk& chunk) {
    if (chunk.begins_block && chunk.first > 0) facts = binary_facts(at + chunk.facts);
    const uint8_t* const order = weight.binary_order + chunk.order;
    const int64_t plain = order[0], salient = order[1];
    uint8_t* const of_salient = unpacked + 3 * 4 * plain * kVectorBytes;
    unpack_bits(at + chunk.codes, plain, 3, unpacked);
    unpack_bits(at + chunk.codes + plain * kVectorBytes, salient, 2, of_salient);
    for (int64_t t = first; t < last; t += kPlaneColumns) {
      const int64_t token = chunk.index * task.tokens + t;
      binary_of_any_block(last - t < kPlaneColumns ? last - t : kPlaneColumns,
                          {.plain = unpacked,
                           .salient = of_salient,
                           .plain_steps = 4 * plain,
                           .salient_steps = 4 * salient,
                           .x = x + t * chunk.steps(),
                           .minus_totals = task.planes.sums + 2 * token,
                           .scale_steps = task.planes.steps + token,
                           .facts = &facts,
                           .fresh = chunk.index == 0,
                           .partial = partial + (t - first) * kTileRows});
    }
    x += task.tokens * chunk.steps();
  });
  write_tile(task, tile, first, last - first, partial);
}

static void linear_binary(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if (task.tokens <= kFewBinaryTokens) return binary_of_any_few_tokens(task, first_tile, last_tile);
  for (int64_t t = 0; t < task.tokens; t += kTokenChunk) {
    const int64_t end = task.tokens - t < kTokenChunk ? task.tokens : t + kTokenChunk;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) binary_of_tokens(task, tile, t, end);
  }
}

}  // namespace ballast::BALLAST_ISA
