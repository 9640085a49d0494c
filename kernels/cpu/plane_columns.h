// Linear layers with affine codes that lie by columns (plane_layout.h), one instruction set (see simd.h): the sums of
// plane_kernels.h, bit for bit, without reading the columns where a single token's activation is 0.
//
// Work partition: a thread owns units of kColumnUnit rows. One token: chunk by chunk, the columns that count are
// gathered in fours, and each four runs down the thread's rows; while it does, the next chunk's columns are prefetched.
// More tokens: the codes of a few tiles are put in the order of plane_kernels.h once a chunk.
#pragma once

#include "kernels/cpu/plane_kernels.h"

namespace ballast::BALLAST_ISA {

// Four columns of 16 bytes each, side by side: byte 4·i + j is byte i of column j.
#if defined(BALLAST_AVX2) || defined(BALLAST_AVX512)
static inline V interleave4(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
  const auto load128 = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
  const __m128i va = load128(a), vb = load128(b), vc = load128(c), vd = load128(d);
  const __m128i ab0 = _mm_unpacklo_epi8(va, vb), ab1 = _mm_unpackhi_epi8(va, vb);
  const __m128i cd0 = _mm_unpacklo_epi8(vc, vd), cd1 = _mm_unpackhi_epi8(vc, vd);
  const __m256i lo = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(ab0, cd0)),
                                             _mm_unpackhi_epi16(ab0, cd0), 1);
  const __m256i hi = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(ab1, cd1)),
                                             _mm_unpackhi_epi16(ab1, cd1), 1);
#if defined(BALLAST_AVX512)
  return {_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1)};
#else
  return {lo, hi};
#endif
}
#else
static inline V interleave4(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
  V out;
  for (int i = 0; i < 16; ++i) {
    out.b[4 * i] = a[i];
    out.b[4 * i + 1] = b[i];
    out.b[4 * i + 2] = c[i];
    out.b[4 * i + 3] = d[i];
  }
  return out;
}
#endif

// body(0, step of tile 2·PAIR), body(1, step of tile 2·PAIR + 1) of a unit: a step is four columns of 16 rows.
template <int BITS, int PAIR, class Body>
static inline __attribute__((always_inline)) void each_tile_of_pair(const uint8_t* const (&unit)[4],
                                                                    Body&& body) {
  constexpr int64_t kVector = 16 * (BITS == 4 ? PAIR : PAIR / 2);
  const V codes = interleave4(unit[0] + kVector, unit[1] + kVector, unit[2] + kVector, unit[3] + kVector);
  if constexpr (BITS == 4) {
    body(0, mask(codes, 15));
    body(1, mask(right<4>(codes), 15));
  } else {
    constexpr int kShift = 4 * (PAIR % 2);
    const V first = mask(right<kShift>(codes), 3), second = mask(right<kShift + 2>(codes), 3);
    if constexpr (BITS == 2) {
      body(0, first);
      body(1, second);
    } else {
      const V upper = interleave4(unit[0] + 32, unit[1] + 32, unit[2] + 32, unit[3] + 32);
      if constexpr (PAIR == 0) {
        body(0, either(first, mask(left<2>(upper), 4)));
        body(1, either(second, mask(left<1>(upper), 4)));
      } else {
        body(0, either(first, mask(right<2 * PAIR - 2>(upper), 4)));
        body(1, either(second, mask(right<2 * PAIR - 1>(upper), 4)));
      }
    }
  }
}

// The columns of one chunk that count for one token, in fours, the last one filled up with digits of 0.
struct ChunkColumns {
  int64_t fours = 0;
  int64_t columns = 0;
  int64_t bytes[kChunk];      ///< of a column's codes behind the chunk's
  int32_t x[kChunk / 4 * 3];  ///< [four][plane], each word the digits of four columns
};
template <int P>
static void take_columns(const int32_t* digits, int64_t steps, int64_t column_bytes, ChunkColumns& out) {
  int8_t bytes[kChunk / 4 * P * 4];
  int64_t count = 0;
  for (int64_t step = 0; step < steps; ++step) {
    int32_t any = 0;
    for (int p = 0; p < P; ++p) any |= digits[step * P + p];
    if (any == 0) continue;
    int8_t of[P][4], all[4];
    __builtin_memcpy(of, digits + step * P, sizeof of);
    __builtin_memcpy(all, &any, 4);
    for (int j = 0; j < 4; ++j) {
      if (all[j] == 0) continue;
      for (int p = 0; p < P; ++p) bytes[(count / 4 * P + p) * 4 + count % 4] = of[p][j];
      out.bytes[count++] = (4 * step + j) * column_bytes;
    }
  }
  out.columns = count;
  for (; count % 4 != 0; ++count) {
    for (int p = 0; p < P; ++p) bytes[(count / 4 * P + p) * 4 + count % 4] = 0;
    out.bytes[count] = out.bytes[count - 1];
  }
  out.fours = count / 4;
  __builtin_memcpy(out.x, bytes, size_t(count * P));
}

// sums[2][P] += Σ over the columns of a chunk in two tiles of a unit.
template <int BITS, int P, int PAIR>
static __attribute__((noinline)) void dot_columns(const uint8_t* unit, const ChunkColumns& columns,
                                                  Sums* sums) {
  const int64_t* bytes = columns.bytes;
  const int32_t* x = columns.x;
  for (int64_t fours = columns.fours; fours > 0;) {
    const int64_t count = fours < kFlushSteps<BITS> ? fours : kFlushSteps<BITS>;
    Bytes partial[2 * P];
#pragma GCC unroll 6
    for (int i = 0; i < 2 * P; ++i) partial[i] = no_bytes();
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; ++i, bytes += 4, x += P)
      each_tile_of_pair<BITS, PAIR>(
          {unit + bytes[0], unit + bytes[1], unit + bytes[2], unit + bytes[3]},
          [&](int tile, V step) __attribute__((always_inline)) {
#pragma GCC unroll 3
            for (int p = 0; p < P; ++p) dot_bytes(partial[tile * P + p], step, x[p]);
          });
#pragma GCC unroll 6
    for (int i = 0; i < 2 * P; ++i) flush(sums[i], partial[i]);
    fours -= count;
  }
}

template <int BITS, int P, int PAIR = 0, class Body>
static inline void each_pair(Body&& body) {
  if constexpr (PAIR < kUnitTiles / 2) {
    body(PAIR, dot_columns<BITS, P, PAIR>);
    each_pair<BITS, P, PAIR + 1>(body);
  }
}

template <class Groups, int P>
static void columns_of_one_token(const LinearTask& task, int64_t first_unit, int64_t last_unit) {
  constexpr int BITS = Groups::kBits;
  const TiledWeight& weight = task.weight;
  const ColumnShape layout = column_shape(BITS, weight);
  const ChunkShape shape = chunk_shape(BITS, weight.group_size);
  const int64_t unit_bytes = layout.unit_bytes(), column_bytes = layout.column_bytes();
  const int64_t groups = weight.in_features / weight.group_size, chunks = groups * shape.chunks();
  const int32_t *digits = task.planes.digits, *digit_sums = task.planes.sums;
  const float* step = task.planes.steps;
  float* y = task.scratch;
  for (int64_t i = 0; i < (last_unit - first_unit) * kColumnUnit; ++i) y[i] = 0;
  ChunkColumns taken[2];
  // Chunk `index` of the row, its codes and those columns of it that count.
  const uint8_t* next_codes = nullptr;
  const auto take = [&](int64_t index) {
    const int64_t chunk = index % shape.chunks();
    take_columns<P>(digits, shape.steps(chunk), column_bytes, taken[index % 2]);
    digits += shape.steps(chunk) * P;
    next_codes = weight.data + index / shape.chunks() * layout.group_bytes() + layout.fact_bytes() +
                 chunk * kChunk * column_bytes;
  };
  take(0);
  for (int64_t index = 0; index < chunks; ++index, ++step, digit_sums += P) {
    const uint8_t* codes = next_codes;
    const uint8_t* facts = weight.data + index / shape.chunks() * layout.group_bytes();
    const ChunkColumns& now = taken[index % 2];
    ChunkColumns& next = taken[(index + 1) % 2];
    next.columns = 0;
    if (index + 1 < chunks) take(index + 1);
    for (int64_t unit = first_unit; unit < last_unit; ++unit) {
      const int64_t at = unit * unit_bytes;
      for (int64_t i = 0; i < next.columns; ++i) __builtin_prefetch(next_codes + next.bytes[i] + at);
      each_pair<BITS, P>([&](int pair, auto dot_pair) {
        const int64_t tile = unit * kUnitTiles + 2 * pair;
        const uint8_t* fact = facts + tile * kColumnFactBytes;
        const typename Groups::Facts pair_facts[2] = {Groups::facts(weight, fact),
                                                      Groups::facts(weight, fact + kColumnFactBytes)};
        Sums sums[2 * P];
        for (int i = 0; i < 2; ++i) Groups::template begin<P>(pair_facts[i], digit_sums, sums + i * P);
        dot_pair(codes + at, now, sums);
        float* to = y + ((unit - first_unit) * kUnitTiles + 2 * pair) * kTileRows;
        for (int i = 0; i < 2; ++i, to += kTileRows)
          store(to, Groups::template finish<P>(pair_facts[i], digit_sums, sums + i * P, *step, load(to)));
      });
    }
  }
  const int64_t tiles = (task.out_features + kTileRows - 1) / kTileRows;
  for (int64_t tile = first_unit * kUnitTiles; tile < last_unit * kUnitTiles && tile < tiles; ++tile)
    write_tile(task, tile, 0, 1, y + (tile - first_unit * kUnitTiles) * kTileRows);
}

// Two tiles of a chunk in the order of plane_kernels.h, `stride` bytes apart.
template <int BITS, int PAIR>
static void unpack_pair(const uint8_t* unit, int64_t steps, int64_t columns, int64_t column_bytes,
                        uint8_t* out, int64_t stride) {
  static const uint8_t kNothing[kColumnUnit] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const uint8_t* of[4];
    for (int64_t j = 0; j < 4; ++j)
      of[j] = 4 * step + j < columns ? unit + (4 * step + j) * column_bytes : kNothing;
    each_tile_of_pair<BITS, PAIR>({of[0], of[1], of[2], of[3]}, [&](int tile, V codes) {
      store_step(out + tile * stride + step * kVectorBytes, codes);
    });
  }
}

template <class Groups, int P, int PAIR>
static void columns_of_tokens(const LinearTask& task, int64_t unit, int64_t first, int64_t last) {
  constexpr int BITS = Groups::kBits;
  const TiledWeight& weight = task.weight;
  const ColumnShape layout = column_shape(BITS, weight);
  const ChunkShape shape = chunk_shape(BITS, weight.group_size);
  constexpr int64_t kUnpacked = kChunk / 4 * kVectorBytes;
  uint8_t* unpacked = reinterpret_cast<uint8_t*>(task.scratch);
  float* partial = task.scratch + 2 * kUnpacked / int64_t(sizeof(float));
  const int32_t* x = task.planes.digits;
  const int64_t tile = unit * kUnitTiles + 2 * PAIR, groups = weight.in_features / weight.group_size;
  int64_t index = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const uint8_t* facts = weight.data + group * layout.group_bytes();
    const uint8_t* codes = facts + layout.fact_bytes() + unit * layout.unit_bytes();
    const typename Groups::Facts pair_facts[2] = {
        Groups::facts(weight, facts + tile * kColumnFactBytes),
        Groups::facts(weight, facts + (tile + 1) * kColumnFactBytes)};
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk, ++index) {
      const int64_t steps = shape.steps(chunk);
      unpack_pair<BITS, PAIR>(codes + chunk * kChunk * layout.column_bytes(), steps, shape.columns(chunk),
                              layout.column_bytes(), unpacked, kUnpacked);
      for (int i = 0; i < 2; ++i)
        multiply_chunk<Groups, P>(task,
                                  {.w = unpacked + i * kUnpacked, .steps = steps, .x = x, .index = index},
                                  pair_facts[i], first, last, partial + i * kTokenChunk * kTileRows);
      x += task.tokens * steps * P;
    }
  }
  const int64_t tiles = (task.out_features + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < 2 && tile + i < tiles; ++i)
    write_tile(task, tile + i, first, last - first, partial + i * kTokenChunk * kTileRows);
}

template <class Groups, int P, int PAIR = 0>
static void columns_of_unit(const LinearTask& task, int64_t unit, int64_t first, int64_t last) {
  if constexpr (PAIR < kUnitTiles / 2) {
    if ((unit * kUnitTiles + 2 * PAIR) * kTileRows >= task.out_features) return;
    columns_of_tokens<Groups, P, PAIR>(task, unit, first, last);
    columns_of_unit<Groups, P, PAIR + 1>(task, unit, first, last);
  }
}

// Rows whose results one token keeps in the scratch space.
inline constexpr int64_t kUnitsAtOnce = linear_scratch_floats() / kColumnUnit;

template <class Groups, int P>
static void columns_of(const LinearTask& task, int64_t first_unit, int64_t last_unit) {
  if (task.tokens == 1) {
    for (int64_t unit = first_unit; unit < last_unit; unit += kUnitsAtOnce)
      columns_of_one_token<Groups, P>(task, unit,
                                      last_unit - unit < kUnitsAtOnce ? last_unit : unit + kUnitsAtOnce);
    return;
  }
  for (int64_t t = 0; t < task.tokens; t += kTokenChunk)
    for (int64_t unit = first_unit; unit < last_unit; ++unit)
      columns_of_unit<Groups, P>(task, unit, t,
                                 task.tokens - t < kTokenChunk ? task.tokens : t + kTokenChunk);
}

template <class Groups>
static void columns_of_groups(const LinearTask& task, int64_t first_unit, int64_t last_unit) {
  if (task.planes.planes == 1) return columns_of<Groups, 1>(task, first_unit, last_unit);
  columns_of<Groups, 3>(task, first_unit, last_unit);
}
template <int BITS>
static void columns_of_affine(const LinearTask& task, int64_t first_unit, int64_t last_unit) {
  if (task.weight.half_zeros) return columns_of_groups<AffineGroups<BITS, true>>(task, first_unit, last_unit);
  columns_of_groups<AffineGroups<BITS>>(task, first_unit, last_unit);
}

static void linear_columns(const LinearTask& task, int64_t first_unit, int64_t last_unit) {
  switch (task.weight.kind) {
    case TileKind::affine2:
      return columns_of_affine<2>(task, first_unit, last_unit);
    case TileKind::affine3:
      return columns_of_affine<3>(task, first_unit, last_unit);
    case TileKind::affine4:
      return columns_of_affine<4>(task, first_unit, last_unit);
    default:
      __builtin_trap();
  }
}

}  // namespace ballast::BALLAST_ISA
