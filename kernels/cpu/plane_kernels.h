// Linear layers with affine weights as integer sums, one instruction set (see simd.h).
//
//   y = Σ_chunks  scale · step · Σ_p base^p · I_p,     I_p = Σ_k (code_k − zero) · digit_pk
//
// with the activations split into digits by plane_split.h. I_p is exact, so a result depends neither on the order of
// its additions nor on the instruction set; what is rounded is written once, in `finish`, chunks ascending.
//
// Work partition: a thread owns whole tiles of 16 output rows. One token: codes are unpacked in registers, while
// the lines to come are prefetched. More tokens: a chunk is unpacked into L1 once, then blocks of tokens run over
// it, all their sums in registers.
#pragma once

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/planes_simd.h"

namespace ballast::BALLAST_ISA {

#if defined(BALLAST_AVX512)
inline constexpr int kPlaneColumns = 12;
#else
inline constexpr int kPlaneColumns = 6;
#endif
inline constexpr int64_t kPrefetchBytes = 3072;

// body(i, step i) for the steps of one unit.
template <int BITS, class Body>
static inline __attribute__((always_inline)) void each_step(const uint8_t* p, Body&& body) {
  if constexpr (BITS == 8) {
    body(0, widen32(p));
  } else if constexpr (BITS == 4) {
    const V v = load_codes64(p);
    body(0, mask(v, 15));
    body(1, mask(right<4>(v), 15));
  } else if constexpr (BITS == 2) {
    const V v = load_codes64(p);
    body(0, mask(v, 3));
    body(1, mask(right<2>(v), 3));
    body(2, mask(right<4>(v), 3));
    body(3, mask(right<6>(v), 3));
  } else {
    const V a = load_codes64(p), b = load_codes64(p + 64), c = load_codes64(p + 128);
    body(0, mask(a, 7));
    body(1, mask(right<3>(a), 7));
    body(6, either(mask(right<6>(a), 3), mask(right<4>(c), 4)));
    body(2, mask(b, 7));
    body(3, mask(right<3>(b), 7));
    body(7, either(mask(right<6>(b), 3), mask(right<5>(c), 4)));
    body(4, mask(c, 7));
    body(5, mask(right<3>(c), 7));
  }
}
// The short unit of 3 bits.
template <class Body>
static inline __attribute__((always_inline)) void each_step_of_short_unit(const uint8_t* p, Body&& body) {
  const V low = load_codes64(p), high = load_upper32(p + 64);
  body(0, either(mask(low, 3), left<2>(mask(high, 1))));
  body(1, either(mask(right<2>(low), 3), left<1>(mask(high, 2))));
  body(2, either(mask(right<4>(low), 3), mask(high, 4)));
  body(3, either(mask(right<6>(low), 3), right<1>(mask(high, 8))));
}

template <int BITS>
static inline void prefetch_unit(const uint8_t* p) {
  for (int64_t at = 0; at < steps_per_unit(BITS) * bytes_per_step(BITS); at += 64)
    __builtin_prefetch(p + at + kPrefetchBytes);
}

// A word of activations against one step, in the sums of its plane.
template <int BITS>
using Partial = typename Choice<BITS == 8, Sums, Bytes>::type;
template <int BITS>
static inline __attribute__((always_inline)) void dot(Partial<BITS>& partial, V codes, int32_t x) {
  if constexpr (BITS == 8) {
    dot_words(partial, codes, x);
  } else {
    dot_bytes(partial, codes, x);
  }
}
template <int BITS>
static inline Partial<BITS> no_partial() {
  if constexpr (BITS == 8) {
    return no_sums();
  } else {
    return no_bytes();
  }
}
template <int BITS>
static inline void flush_partial(Sums& sums, Partial<BITS> partial) {
  if constexpr (BITS == 8) {
    sums = plus(sums, partial);
  } else {
    flush(sums, partial);
  }
}

// sums[p] += Σ over the steps of a chunk, codes straight from memory; x: [step][P]
template <int BITS, int P>
static inline __attribute__((always_inline)) void dot_packed(const uint8_t* codes, int64_t steps,
                                                             const int32_t* x, Sums (&sums)[P]) {
  constexpr int64_t kUnit = steps_per_unit(BITS), kBytes = kUnit * bytes_per_step(BITS);
  constexpr int64_t kUnits = BITS == 8 ? 8 : BITS == 4 ? 4 : BITS == 3 ? 2 : 4;
  static_assert(kUnits * kUnit <= kFlushSteps<BITS> || BITS == 8);
  int64_t units = steps / kUnit;
  while (units > 0) {
    Partial<BITS> partial[P];
    for (int p = 0; p < P; ++p) partial[p] = no_partial<BITS>();
    const auto unit = [&]() __attribute__((always_inline)) {
      prefetch_unit<BITS>(codes);
      each_step<BITS>(
          codes, [&](int i, V step) __attribute__((always_inline)) {
            for (int p = 0; p < P; ++p) dot<BITS>(partial[p], step, x[i * P + p]);
          });
      codes += kBytes;
      x += kUnit * P;
    };
    if (units >= kUnits) {
#pragma GCC unroll 8
      for (int i = 0; i < kUnits; ++i) unit();
      units -= kUnits;
    } else {
      for (; units > 0; --units) unit();
    }
    for (int p = 0; p < P; ++p) flush_partial<BITS>(sums[p], partial[p]);
  }
  if constexpr (BITS == 3) {
    if (steps % kUnit == 0) return;
    Bytes partial[P];
    for (int p = 0; p < P; ++p) partial[p] = no_bytes();
    each_step_of_short_unit(codes, [&](int i, V step) {
      for (int p = 0; p < P; ++p) dot<BITS>(partial[p], step, x[i * P + p]);
    });
    for (int p = 0; p < P; ++p) flush(sums[p], partial[p]);
  }
}

// Steps of a chunk, one after the other.
template <int BITS>
static void unpack(const uint8_t* codes, int64_t steps, uint8_t* out) {
  constexpr int64_t kUnit = steps_per_unit(BITS), kBytes = kUnit * bytes_per_step(BITS);
  const auto put = [&](int i, V step) { store_step(out + i * kVectorBytes, step); };
  for (int64_t units = steps / kUnit; units > 0; --units) {
    prefetch_unit<BITS>(codes);
    each_step<BITS>(codes, put);
    codes += kBytes;
    out += kUnit * kVectorBytes;
  }
  if constexpr (BITS == 3)
    if (steps % kUnit != 0) each_step_of_short_unit(codes, put);
}

// sums[c] += Σ over the steps of an unpacked chunk; x: [step][COLUMNS]
template <int BITS, int COLUMNS>
static __attribute__((noinline)) void dot_unpacked(const uint8_t* w, int64_t steps, const int32_t* x,
                                                   Sums* sums) {
  while (steps > 0) {
    const int64_t count = BITS == 8 || steps < kFlushSteps<BITS> ? steps : kFlushSteps<BITS>;
    Partial<BITS> partial[COLUMNS];
#pragma GCC unroll 12
    for (int c = 0; c < COLUMNS; ++c) partial[c] = no_partial<BITS>();
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; ++i, w += kVectorBytes, x += COLUMNS) {
      const V codes = load_step(w);
#pragma GCC unroll 12
      for (int c = 0; c < COLUMNS; ++c) dot<BITS>(partial[c], codes, x[c]);
    }
#pragma GCC unroll 12
    for (int c = 0; c < COLUMNS; ++c) flush_partial<BITS>(sums[c], partial[c]);
    steps -= count;
  }
}

// y + scale · step · Σ_p base^p · sums[p]; the one place where a linear layer of integer sums rounds.
template <int BITS, int P>
static inline F finish(const Sums* sums, F scale, float step, F y) {
  F value;
  if constexpr (P == 1) {
    value = to_float(sums[0]);
  } else if constexpr (P == 2) {
    value = fma(to_float(sums[1]), broadcast(4096), to_float(sums[0]));
  } else {
    value = fma(to_float(sums[2]), broadcast(65536), to_float(plus(left_sums<8>(sums[1]), sums[0])));
  }
  return fma(value, mul(scale, broadcast(step)), y);
}

// The facts of one group and where its chunks lie.
struct GroupFacts {
  F scale;
  Sums zeros;
};
static inline GroupFacts group_facts(const uint8_t* facts) {
  __builtin_prefetch(facts + kPrefetchBytes);
  return {load_half(reinterpret_cast<const uint16_t*>(facts)), widen_zeros(facts + 2 * kTileRows)};
}

template <int BITS, int P>
static void planes_of_one_token(const LinearTask& task, int64_t tile) {
  const TiledWeight& weight = task.weight;
  const ChunkShape shape = chunk_shape(BITS, weight.group_size);
  const int64_t groups = weight.in_features / weight.group_size;
  const uint8_t* at = weight.data + tile * weight.tile_bytes;
  const int32_t *x = task.planes.digits, *chunk_sums = task.planes.sums;
  const float* step = task.planes.steps;
  F y = broadcast(0);
  for (int64_t group = 0; group < groups; ++group) {
    const GroupFacts facts = group_facts(at);
    at += affine_fact_bytes(weight.group_size);
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk, ++step, chunk_sums += P) {
      const int64_t steps = shape.steps(chunk);
      Sums sums[P];
      for (int p = 0; p < P; ++p) sums[p] = times(facts.zeros, chunk_sums[p]);
      dot_packed<BITS, P>(at, steps, x, sums);
      y = finish<BITS, P>(sums, facts.scale, *step, y);
      at += steps * bytes_per_step(BITS);
      x += steps * P;
    }
  }
  float partial[kTileRows];
  store(partial, y);
  write_tile(task, tile, 0, 1, partial);
}

// One block of tokens over one unpacked chunk: partial[token][16] += …
struct BlockTask {
  const uint8_t* w;
  int64_t steps;
  const int32_t* x;
  const int32_t* sums;
  const float* scale_steps;
  const GroupFacts* facts;
  bool fresh;
  float* partial;
};
template <int BITS, int P, int TOKENS>
static void planes_of_block(const BlockTask& task) {
  Sums sums[TOKENS * P];
  for (int c = 0; c < TOKENS * P; ++c) sums[c] = times(task.facts->zeros, task.sums[c]);
  dot_unpacked<BITS, TOKENS * P>(task.w, task.steps, task.x, sums);
  for (int t = 0; t < TOKENS; ++t) {
    float* to = task.partial + t * kTileRows;
    const F y = task.fresh ? broadcast(0) : load(to);
    store(to, finish<BITS, P>(sums + t * P, task.facts->scale, task.scale_steps[t], y));
  }
}
template <int BITS, int P, int TOKENS = kPlaneColumns / P>
static inline void planes_of_any_block(int64_t tokens, const BlockTask& task) {
  if constexpr (TOKENS > 0) {
    if (tokens == TOKENS) return planes_of_block<BITS, P, TOKENS>(task);
    planes_of_any_block<BITS, P, TOKENS - 1>(tokens, task);
  }
}

template <int BITS, int P>
static void planes_of_tokens(const LinearTask& task, int64_t tile, int64_t first, int64_t last) {
  const TiledWeight& weight = task.weight;
  const ChunkShape shape = chunk_shape(BITS, weight.group_size);
  const int64_t groups = weight.in_features / weight.group_size;
  constexpr int64_t kBlock = kPlaneColumns / P;
  static_assert(kTokenChunk % kBlock == 0);
  uint8_t* unpacked = reinterpret_cast<uint8_t*>(task.scratch);
  float* partial = task.scratch + kMaxSteps * kVectorBytes / int64_t(sizeof(float));
  const uint8_t* at = weight.data + tile * weight.tile_bytes;
  const int32_t* x = task.planes.digits;
  int64_t index = 0;  // of the chunk in the row
  for (int64_t group = 0; group < groups; ++group) {
    const GroupFacts facts = group_facts(at);
    at += affine_fact_bytes(weight.group_size);
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk, ++index) {
      const int64_t steps = shape.steps(chunk);
      unpack<BITS>(at, steps, unpacked);
      at += steps * bytes_per_step(BITS);
      for (int64_t t = first; t < last; t += kBlock)
        planes_of_any_block<BITS, P>(last - t < kBlock ? last - t : kBlock,
                                     {.w = unpacked,
                                      .steps = steps,
                                      .x = x + t * steps * P,
                                      .sums = task.planes.sums + (index * task.tokens + t) * P,
                                      .scale_steps = task.planes.steps + index * task.tokens + t,
                                      .facts = &facts,
                                      .fresh = index == 0,
                                      .partial = partial + (t - first) * kTileRows});
      x += task.tokens * steps * P;
    }
  }
  write_tile(task, tile, first, last - first, partial);
}

template <int BITS, int P>
static void planes_of_tiles(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  for (int64_t tile = first_tile; tile < last_tile && task.tokens == 1; ++tile)
    planes_of_one_token<BITS, P>(task, tile);
  if (task.tokens == 1) return;
  for (int64_t t = 0; t < task.tokens; t += kTokenChunk) {
    const int64_t end = task.tokens - t < kTokenChunk ? task.tokens : t + kTokenChunk;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) planes_of_tokens<BITS, P>(task, tile, t, end);
  }
}

static void linear_planes(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  const bool one = task.planes.planes == 1;
  switch (task.weight.kind) {
    case TileKind::affine2:
      return one ? planes_of_tiles<2, 1>(task, first_tile, last_tile)
                 : planes_of_tiles<2, 3>(task, first_tile, last_tile);
    case TileKind::affine3:
      return one ? planes_of_tiles<3, 1>(task, first_tile, last_tile)
                 : planes_of_tiles<3, 3>(task, first_tile, last_tile);
    case TileKind::affine4:
      return one ? planes_of_tiles<4, 1>(task, first_tile, last_tile)
                 : planes_of_tiles<4, 3>(task, first_tile, last_tile);
    case TileKind::affine8:
      return one ? planes_of_tiles<8, 1>(task, first_tile, last_tile)
                 : planes_of_tiles<8, 2>(task, first_tile, last_tile);
    default:
      __builtin_trap();
  }
}

}  // namespace ballast::BALLAST_ISA
