// Linear layers with affine codes as integer sums, one instruction set (see simd.h).
//
//   y = Σ_chunks  scale · step · Σ_p base^p · I_p,     I_p = Σ_k (code_k − zero) · digit_pk
//
// With half zero points 2·I_p is the whole number, of twice the codes and zeros, and the scale is halved.
//
//
// with the activations split into digits by plane_split.h. I_p is exact, so a result depends neither on the order of
// its additions nor on the instruction set; what is rounded is written once, in `finish`, chunks ascending. Weights
// with outliers have zero points that are no integers (I_p = Σ code · digit, and the zero point times Σ digit is
// taken off in floats), and their outliers are added behind each chunk, one fused step each, columns ascending.
//
// Work partition: a thread owns whole tiles of 16 output rows. A few tokens, whose sums all fit in registers: codes are
// unpacked in registers, too, while the lines to come are prefetched. More tokens: a chunk is unpacked into L1 once,
// then blocks of tokens run over it, all sums of a block in registers.
#pragma once

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/planes_simd.h"

namespace ballast::BALLAST_ISA {

#if defined(BALLAST_AVX512)
inline constexpr int kPlaneColumns = 12;
inline constexpr int kMostPlaceSums = 8;  // more sums cost more than they save
#else
inline constexpr int kPlaneColumns = 6;
#endif

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
static inline void prefetch_unit(const uint8_t* p, int64_t ahead = kPrefetchBytes) {
  for (int64_t at = 0; at < steps_per_unit(BITS) * bytes_per_step(BITS); at += 64)
    __builtin_prefetch(p + at + ahead);
}

#if defined(BALLAST_AVX512)
// Products of bytes do not saturate here, so codes need not be shifted down: each place in the byte has sums of its own,
// and those are shifted.
// body(i, place, step i times 2^kPlaces[place]) for the steps of one unit.
template <int BITS>
inline constexpr int kPlaces[4] = {0, 4, 0, 0};
template <>
inline constexpr int kPlaces<3>[4] = {0, 3, 4, 5};
template <>
inline constexpr int kPlaces<2>[4] = {0, 2, 4, 6};
template <int BITS, class Body>
static inline __attribute__((always_inline)) void each_step_in_place(const uint8_t* p, Body&& body) {
  const V a = load_codes64(p);
  if constexpr (BITS == 4) {
    body(0, 0, mask(a, 0x0F));
    body(1, 1, mask(a, 0xF0));
  } else if constexpr (BITS == 2) {
    body(0, 0, mask(a, 0x03));
    body(1, 1, mask(a, 0x0C));
    body(2, 2, mask(a, 0x30));
    body(3, 3, mask(a, 0xC0));
  } else {
    const V b = load_codes64(p + 64), c = load_codes64(p + 128);
    body(0, 0, mask(a, 0x07));
    body(1, 1, mask(a, 0x38));
    body(6, 2, mask(choose_bits(0x40, c, right<2>(a)), 0x70));
    body(2, 0, mask(b, 0x07));
    body(3, 1, mask(b, 0x38));
    body(7, 3, mask(choose_bits(0x80, c, right<1>(b)), 0xE0));
    body(4, 0, mask(c, 0x07));
    body(5, 1, mask(c, 0x38));
  }
}

// dot_packed for the whole units of a chunk.
template <int BITS, int COLUMNS>
static inline __attribute__((always_inline)) void dot_in_place(const uint8_t*& codes, int64_t units,
                                                               const int32_t*& x, Sums (&sums)[COLUMNS],
                                                               int64_t ahead) {
  constexpr int kCount = BITS == 4 ? 2 : 4;  // places
  constexpr int kTurns = BITS == 4 && COLUMNS <= 3 ? 2 : 1;
  constexpr int64_t kUnit = steps_per_unit(BITS);
  Sums partial[kTurns * kCount * COLUMNS];
  for (auto& sum : partial) sum = no_sums();
  const auto unit = [&](int turn) __attribute__((always_inline)) {
    prefetch_unit<BITS>(codes, ahead);
    each_step_in_place<BITS>(
        codes, [&](int i, int place, V step) __attribute__((always_inline)) {
          for (int c = 0; c < COLUMNS; ++c)
            dot_bytes(partial[(turn * kCount + place) * COLUMNS + c], step, x[i * COLUMNS + c]);
        });
    codes += kUnit * bytes_per_step(BITS);
    x += kUnit * COLUMNS;
  };
  for (; units >= 2; units -= 2) unit(0), unit(kTurns - 1);
  if (units > 0) unit(0);
  for (int i = 0; i < kTurns * kCount * COLUMNS; ++i)
    sums[i % COLUMNS] = plus(sums[i % COLUMNS], right_sums(partial[i], kPlaces<BITS>[i / COLUMNS % kCount]));
}
#endif

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

// sums[c] += Σ over the steps of a chunk, codes straight from memory; x: [step][COLUMNS]. `ahead`: see prefetch_unit.
template <int BITS, int COLUMNS>
static inline __attribute__((always_inline)) void dot_packed(const uint8_t* codes, int64_t steps,
                                                             const int32_t* x, Sums (&sums)[COLUMNS],
                                                             int64_t ahead) {
  constexpr int64_t kUnit = steps_per_unit(BITS), kBytes = kUnit * bytes_per_step(BITS);
  constexpr int64_t kUnits = BITS == 8 ? 8 : BITS == 4 ? 4 : BITS == 3 ? 2 : 4;
  static_assert(kUnits * kUnit <= kFlushSteps<BITS> || BITS == 8);
  constexpr int kCount = kChains<COLUMNS>;
  int64_t units = steps / kUnit;
#if defined(BALLAST_AVX512)
  if constexpr (BITS != 8 && COLUMNS * (BITS == 4 ? 2 : 4) <= kMostPlaceSums) {
    dot_in_place<BITS>(codes, units, x, sums, ahead);
    units = 0;
  }
#endif
  while (units > 0) {
    Partial<BITS> partial[kCount * COLUMNS];
    for (auto& sum : partial) sum = no_partial<BITS>();
    const auto unit = [&]() __attribute__((always_inline)) {
      prefetch_unit<BITS>(codes, ahead);
      each_step<BITS>(
          codes, [&](int i, V step) __attribute__((always_inline)) {
            for (int c = 0; c < COLUMNS; ++c)
              dot<BITS>(partial[i % kCount * COLUMNS + c], step, x[i * COLUMNS + c]);
          });
      codes += kBytes;
      x += kUnit * COLUMNS;
    };
    if (units >= kUnits) {
#pragma GCC unroll 8
      for (int i = 0; i < kUnits; ++i) unit();
      units -= kUnits;
    } else {
      for (; units > 0; --units) unit();
    }
    for (int c = 0; c < kCount * COLUMNS; ++c) flush_partial<BITS>(sums[c % COLUMNS], partial[c]);
  }
  if constexpr (BITS == 3) {
    if (steps % kUnit == 0) return;
    Bytes partial[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) partial[c] = no_bytes();
    each_step_of_short_unit(codes, [&](int i, V step) {
      for (int c = 0; c < COLUMNS; ++c) dot<BITS>(partial[c], step, x[i * COLUMNS + c]);
    });
    for (int c = 0; c < COLUMNS; ++c) flush(sums[c], partial[c]);
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

// Σ_p base^p · sums[p]. This and the policies' `finish` are the only places where integer sums are rounded.
template <int BITS, int P>
static inline F join(const Sums* sums) {
  if constexpr (P == 1) return to_float(sums[0]);
  if constexpr (P == 2) return fma(to_float(sums[1]), broadcast(4096), to_float(sums[0]));
  if constexpr (P == 3)
    return fma(to_float(sums[2]), broadcast(65536), to_float(plus(left_sums<8>(sums[1]), sums[0])));
}

// What a kind of weight adds to the codes: its facts before each group, sums that a chunk begins with, how they end.
template <int B, bool HALF_ZEROS = false>
struct AffineGroups {
  static constexpr int kBits = B;
  static constexpr bool kHalfZeros = HALF_ZEROS;
  static constexpr bool kOutliers = false;
  struct Facts {
    F scale;
    Sums zeros;
  };
  static int64_t fact_bytes(const TiledWeight& weight) { return affine_fact_bytes(weight.group_size); }
  static Facts facts(const TiledWeight&, const uint8_t* at) {
    const F scale = load_half(reinterpret_cast<const uint16_t*>(at));
    return {HALF_ZEROS ? mul(scale, broadcast(0.5f)) : scale, widen_zeros(at + 2 * kTileRows)};
  }
  // `digit_sums`: PlaneBlocks::sums of one chunk and token.
  template <int P>
  static inline void begin(const Facts& facts, const int32_t* digit_sums, Sums* sums) {
    for (int p = 0; p < P; ++p) sums[p] = HALF_ZEROS ? no_sums() : times(facts.zeros, digit_sums[p]);
  }
  template <int P>
  static inline F finish(const Facts& facts, const int32_t* digit_sums, const Sums* sums, float step, F y) {
    Sums whole[P];
    for (int p = 0; p < P; ++p)
      whole[p] = HALF_ZEROS ? plus(left_sums<1>(sums[p]), times(facts.zeros, digit_sums[p])) : sums[p];
    return fma(join<B, P>(whole), mul(facts.scale, broadcast(step)), y);
  }
};
// Zero points are real numbers here, so they meet the digits' sums in floats.
template <int B>
struct OutlierGroups {
  static constexpr int kBits = B;
  static constexpr bool kOutliers = true;
  using Facts = OutlierFacts;
  static int64_t fact_bytes(const TiledWeight& weight) { return outlier_fact_bytes(weight.stat_bits); }
  static Facts facts(const TiledWeight& weight, const uint8_t* at) { return outlier_facts(weight, at); }
  template <int P>
  static inline void begin(const Facts&, const int32_t*, Sums* sums) {
    for (int p = 0; p < P; ++p) sums[p] = no_sums();
  }
  template <int P>
  static inline F finish(const Facts& facts, const int32_t* digit_sums, const Sums* sums, float step, F y) {
    int32_t total = 0;  // below 2^30 in size
    for (int p = P - 1; p >= 0; --p) total = total * (B == 8 ? 4096 : 256) + digit_sums[p];
    const F value = fma(facts.zero, broadcast(float(total)), join<B, P>(sums));
    return fma(value, mul(facts.scale, broadcast(step)), y);
  }
};

// The outliers of a tile in the order of their columns.
struct OutlierCursor {
  const uint32_t *begin, *list;  // begin: of the tile's next block of kKBlock columns
  uint32_t next;
  int64_t block = 0;
};
static inline OutlierCursor outlier_cursor(const TiledWeight& weight, int64_t tile) {
  const uint32_t* begin = weight.outlier_begin + tile * ((weight.in_features + kKBlock - 1) / kKBlock);
  return {begin + 1, weight.outliers, begin[0]};
}

// The outliers of one chunk. The code under an outlier is packed as 0, which decodes to −scale · zero: what is
// missing is the outlier and that product again.
struct ChunkOutliers {
  int count = 0;
  float missing[kChunk * kTileRows];
  uint16_t column[kChunk * kTileRows];
  uint8_t row[kChunk * kTileRows];
};
static void take_outliers(OutlierCursor& cursor, int64_t first_column, int64_t columns,
                          const OutlierFacts& facts, int64_t in_features, ChunkOutliers& out) {
  out.count = 0;
  float removed[kTileRows];
  store(removed, mul(facts.scale, facts.zero));
  const int64_t blocks = (in_features + kKBlock - 1) / kKBlock;
  for (;; ++cursor.next) {
    while (cursor.block < blocks && cursor.next >= *cursor.begin) {
      ++cursor.block;
      ++cursor.begin;
    }
    if (cursor.block == blocks) return;
    const uint32_t entry = cursor.list[cursor.next], place = entry & 0xFFFFu;
    const int64_t column = cursor.block * kKBlock + place / kTileRows;
    if (column >= first_column + columns) return;
    out.column[out.count] = uint16_t(column);
    out.row[out.count] = uint8_t(place % kTileRows);
    out.missing[out.count++] = half_to_float(uint16_t(entry >> 16)) + removed[place % kTileRows];
  }
}
static void add_outliers(const ChunkOutliers& outliers, const float* x, float* y) {
  for (int i = 0; i < outliers.count; ++i)
    y[outliers.row[i]] = __builtin_fmaf(outliers.missing[i], x[outliers.column[i]], y[outliers.row[i]]);
}

// All tokens of a task, at most kFewTokens of them.
template <class Groups, int P, int TOKENS>
static void planes_of_few_tokens(const LinearTask& task, int64_t tile) {
  constexpr int kBits = Groups::kBits;
  const TiledWeight& weight = task.weight;
  const ChunkShape shape = chunk_shape(kBits, weight.group_size);
  const uint8_t* at = weight.data + tile * weight.tile_bytes;
  const int32_t *x = task.planes.digits, *digit_sums = task.planes.sums;
  const float* step = task.planes.steps;
  [[maybe_unused]] OutlierCursor cursor;
  [[maybe_unused]] ChunkOutliers outliers;
  if constexpr (Groups::kOutliers) cursor = outlier_cursor(weight, tile);
  const int64_t ahead = kBits == 4 && TOKENS == 1 ? task.prefetch_bytes : kPrefetchBytes;
  F y[TOKENS];
  for (F& value : y) value = broadcast(0);
  float partial[kTileRows];
  for (int64_t k = 0; k < weight.in_features;) {
    __builtin_prefetch(at + kPrefetchBytes);
    const typename Groups::Facts facts = Groups::facts(weight, at);
    at += Groups::fact_bytes(weight);
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk, step += TOKENS, digit_sums += TOKENS * P) {
      const int64_t steps = shape.steps(chunk), columns = shape.columns(chunk);
      Sums sums[TOKENS * P];
      for (int t = 0; t < TOKENS; ++t) Groups::template begin<P>(facts, digit_sums + t * P, sums + t * P);
      dot_packed<kBits, TOKENS * P>(at, steps, x, sums, ahead);
      for (int t = 0; t < TOKENS; ++t)
        y[t] = Groups::template finish<P>(facts, digit_sums + t * P, sums + t * P, step[t], y[t]);
      at += steps * bytes_per_step(kBits);
      x += steps * TOKENS * P;
      if constexpr (Groups::kOutliers) {
        take_outliers(cursor, k, columns, facts, weight.in_features, outliers);
        for (int t = 0; t < TOKENS && outliers.count > 0; ++t) {
          store(partial, y[t]);
          add_outliers(outliers, task.planes.x + t * task.planes.x_stride, partial);
          y[t] = load(partial);
        }
      }
      k += columns;
    }
  }
  for (int t = 0; t < TOKENS; ++t) {
    store(partial, y[t]);
    write_tile(task, tile, t, 1, partial);
  }
}
// Their sums must fit in registers, as a block's do; beyond eight tokens one unpacked chunk serves as well.
template <int P>
inline constexpr int kFewTokens = kPlaneColumns / P < 8 ? kPlaneColumns / P : 8;
template <class Groups, int P, int TOKENS = kFewTokens<P>>
static inline void planes_of_any_few_tokens(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if constexpr (TOKENS > 0) {
    if (task.tokens != TOKENS)
      return planes_of_any_few_tokens<Groups, P, TOKENS - 1>(task, first_tile, last_tile);
    for (int64_t tile = first_tile; tile < last_tile; ++tile)
      planes_of_few_tokens<Groups, P, TOKENS>(task, tile);
  }
}

// One block of tokens over one unpacked chunk: partial[token][16] += …
template <class Facts>
struct BlockTask {
  const uint8_t* w;
  int64_t steps;
  const int32_t* x;
  const int32_t* digit_sums;
  const float* scale_steps;
  const Facts* facts;
  bool fresh;
  float* partial;
};
template <class Groups, int P, int TOKENS>
static void planes_of_block(const BlockTask<typename Groups::Facts>& task) {
  Sums sums[TOKENS * P];
  for (int t = 0; t < TOKENS; ++t)
    Groups::template begin<P>(*task.facts, task.digit_sums + t * P, sums + t * P);
  dot_unpacked<Groups::kBits, TOKENS * P>(task.w, task.steps, task.x, sums);
  for (int t = 0; t < TOKENS; ++t) {
    float* to = task.partial + t * kTileRows;
    const F y = task.fresh ? broadcast(0) : load(to);
    store(to, Groups::template finish<P>(*task.facts, task.digit_sums + t * P, sums + t * P,
                                         task.scale_steps[t], y));
  }
}
template <class Groups, int P, int TOKENS = kPlaneColumns / P>
static inline void planes_of_any_block(int64_t tokens, const BlockTask<typename Groups::Facts>& task) {
  if constexpr (TOKENS > 0) {
    if (tokens == TOKENS) return planes_of_block<Groups, P, TOKENS>(task);
    planes_of_any_block<Groups, P, TOKENS - 1>(tokens, task);
  }
}

// One unpacked chunk, `index` of its row, on tokens [first, last).
struct UnpackedChunk {
  const uint8_t* w;
  int64_t steps;
  const int32_t* x;  ///< the digits of all tokens
  int64_t index;
};
template <class Groups, int P>
static inline void multiply_chunk(const LinearTask& task, const UnpackedChunk& chunk,
                                  const typename Groups::Facts& facts, int64_t first, int64_t last,
                                  float* partial) {
  constexpr int64_t kBlock = kPlaneColumns / P;
  static_assert(kTokenChunk % kBlock == 0);
  for (int64_t t = first; t < last; t += kBlock)
    planes_of_any_block<Groups, P>(last - t < kBlock ? last - t : kBlock,
                                   {.w = chunk.w,
                                    .steps = chunk.steps,
                                    .x = chunk.x + t * chunk.steps * P,
                                    .digit_sums = task.planes.sums + (chunk.index * task.tokens + t) * P,
                                    .scale_steps = task.planes.steps + chunk.index * task.tokens + t,
                                    .facts = &facts,
                                    .fresh = chunk.index == 0,
                                    .partial = partial + (t - first) * kTileRows});
}

template <class Groups, int P>
static void planes_of_tokens(const LinearTask& task, int64_t tile, int64_t first, int64_t last) {
  constexpr int kBits = Groups::kBits;
  const TiledWeight& weight = task.weight;
  const ChunkShape shape = chunk_shape(kBits, weight.group_size);
  uint8_t* unpacked = reinterpret_cast<uint8_t*>(task.scratch);
  float* partial = task.scratch + kMaxSteps * kVectorBytes / int64_t(sizeof(float));
  const uint8_t* at = weight.data + tile * weight.tile_bytes;
  const int32_t* x = task.planes.digits;
  [[maybe_unused]] OutlierCursor cursor;
  [[maybe_unused]] ChunkOutliers outliers;
  if constexpr (Groups::kOutliers) cursor = outlier_cursor(weight, tile);
  int64_t index = 0;  // of the chunk in the row
  for (int64_t k = 0; k < weight.in_features;) {
    const typename Groups::Facts facts = Groups::facts(weight, at);
    at += Groups::fact_bytes(weight);
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk, ++index) {
      const int64_t steps = shape.steps(chunk), columns = shape.columns(chunk);
      unpack<kBits>(at, steps, unpacked);
      at += steps * bytes_per_step(kBits);
      multiply_chunk<Groups, P>(task, {.w = unpacked, .steps = steps, .x = x, .index = index}, facts, first,
                                last, partial);
      x += task.tokens * steps * P;
      if constexpr (Groups::kOutliers) {
        take_outliers(cursor, k, columns, facts, weight.in_features, outliers);
        for (int64_t t = first; t < last && outliers.count > 0; ++t)
          add_outliers(outliers, task.planes.x + t * task.planes.x_stride, partial + (t - first) * kTileRows);
      }
      k += columns;
    }
  }
  write_tile(task, tile, first, last - first, partial);
}

template <class Groups, int P>
static void planes_of_tiles(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if (task.tokens <= kFewTokens<P>) return planes_of_any_few_tokens<Groups, P>(task, first_tile, last_tile);
  for (int64_t t = 0; t < task.tokens; t += kTokenChunk) {
    const int64_t end = task.tokens - t < kTokenChunk ? task.tokens : t + kTokenChunk;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) planes_of_tokens<Groups, P>(task, tile, t, end);
  }
}
template <class Groups>
static void planes_of(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if (task.planes.planes == 1) return planes_of_tiles<Groups, 1>(task, first_tile, last_tile);
  return planes_of_tiles < Groups, Groups::kBits == 8 ? 2 : 3 > (task, first_tile, last_tile);
}

template <int B>
static void planes_of_affine(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if (task.weight.half_zeros) return planes_of<AffineGroups<B, true>>(task, first_tile, last_tile);
  planes_of<AffineGroups<B>>(task, first_tile, last_tile);
}

static void linear_planes(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  switch (task.weight.kind) {
    case TileKind::affine2:
      return planes_of_affine<2>(task, first_tile, last_tile);
    case TileKind::affine3:
      return planes_of_affine<3>(task, first_tile, last_tile);
    case TileKind::affine4:
      return planes_of_affine<4>(task, first_tile, last_tile);
    case TileKind::affine8:
      return planes_of<AffineGroups<8>>(task, first_tile, last_tile);
    case TileKind::outliers2:
      return planes_of<OutlierGroups<2>>(task, first_tile, last_tile);
    case TileKind::outliers3:
      return planes_of<OutlierGroups<3>>(task, first_tile, last_tile);
    case TileKind::outliers4:
      return planes_of<OutlierGroups<4>>(task, first_tile, last_tile);
    case TileKind::outliers8:
      return planes_of<OutlierGroups<8>>(task, first_tile, last_tile);
    default:
      __builtin_trap();
  }
}

}  // namespace ballast::BALLAST_ISA
