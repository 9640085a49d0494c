// Linear layers in floats, one instruction set (see simd.h): all encodings, but affine weights only for tokens that
// are not finite (plane_kernels.h).
//
// Work partition: a thread owns whole tiles of 16 output rows. For each tile and each chunk of tokens, k
// advances in blocks: the block's weights are decoded once into L1 as f32, then blocks of tokens run over it
// with all sums in registers. Lanes are rows and k ascends, so each output is one chain of fused
// multiply-adds in a fixed order.
#pragma once

#include <math.h>

#include "kernels/cpu/decode_kernels.h"

namespace ballast::BALLAST_ISA {

#if defined(BALLAST_AVX512)
inline constexpr int kTokenBlock = 12;
#elif defined(BALLAST_AVX2)
inline constexpr int kTokenBlock = 6;
#else
inline constexpr int kTokenBlock = 4;
#endif
// Up to this many tokens, kMaxTilesAtOnce tiles share one pass.
inline constexpr int kTokensOfManyTiles = 2;
// With more tokens so many: the sums of a block of tokens and two tiles fill 24 of AVX-512's 32 registers, and each value
// that is read serves two multiply-adds.
#if defined(BALLAST_AVX512)
inline constexpr int kTilesOfManyTokens = 2;
#else
inline constexpr int kTilesOfManyTokens = 1;
#endif

// partial[tile][token][16] (+)= Σ_k x[k][token] · w[tile][k][16]
template <int TOKENS, int TILES>
static void multiply(const float* x, const float* const* w, int64_t count, bool fresh, float* partial,
                     int64_t tile_stride) {
  F sums[TILES][TOKENS];
  for (int i = 0; i < TILES; ++i)
    for (int t = 0; t < TOKENS; ++t)
      sums[i][t] = fresh ? broadcast(0) : load(partial + i * tile_stride + t * kTileRows);
  for (int64_t k = 0; k < count; ++k) {
    F weights[TILES];
#pragma GCC unroll 4
    for (int i = 0; i < TILES; ++i) weights[i] = load(w[i] + k * kTileRows);
#pragma GCC unroll 12
    for (int t = 0; t < TOKENS; ++t) {
      const F value = broadcast(x[k * TOKENS + t]);
#pragma GCC unroll 4
      for (int i = 0; i < TILES; ++i) sums[i][t] = fma(value, weights[i], sums[i][t]);
    }
  }
  for (int i = 0; i < TILES; ++i)
    for (int t = 0; t < TOKENS; ++t) store(partial + i * tile_stride + t * kTileRows, sums[i][t]);
}

template <int TILES>
static void multiply_any(int64_t width, const float* x, const float* const* w, int64_t count, bool fresh,
                         float* partial, int64_t tile_stride) {
  switch (width) {
#define BALLAST_WIDTH(n)                                                   \
  case n:                                                                  \
    if constexpr (TILES <= kTilesOfManyTokens || n <= kTokensOfManyTiles)  \
      return multiply<n, TILES>(x, w, count, fresh, partial, tile_stride); \
    __builtin_trap();
    BALLAST_WIDTH(1)
    BALLAST_WIDTH(2)
    BALLAST_WIDTH(3)
    BALLAST_WIDTH(4)
#if defined(BALLAST_AVX2) || defined(BALLAST_AVX512)
    BALLAST_WIDTH(5)
    BALLAST_WIDTH(6)
#endif
#if defined(BALLAST_AVX512)
    BALLAST_WIDTH(7)
    BALLAST_WIDTH(8)
    BALLAST_WIDTH(9)
    BALLAST_WIDTH(10)
    BALLAST_WIDTH(11)
    BALLAST_WIDTH(12)
#endif
#undef BALLAST_WIDTH
    default:
      __builtin_trap();
  }
}

// The first `rows` lanes; the others are 0 and are not stored.
static inline F load_rows(const float* p, int64_t rows) {
  if (rows == kTileRows) return load(p);
  float lanes[kLanes] = {};
  for (int64_t r = 0; r < rows; ++r) lanes[r] = p[r];
  return load(lanes);
}
static inline void store_rows(float* p, int64_t rows, F value) {
  if (rows == kTileRows) return store(p, value);
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t r = 0; r < rows; ++r) p[r] = lanes[r];
}

static inline F apply(uint8_t activation, F value) {
  if (activation == 0) return value;
  if (activation == 1) return max(value, broadcast(0));
  return gelu(value);
}

static void write_tile(const LinearTask& task, int64_t tile, int64_t first_token, int64_t count,
                       const float* partial) {
  const int64_t row0 = tile * kTileRows;
  const int64_t rows = task.out_features - row0 < kTileRows ? task.out_features - row0 : kTileRows;
  const F bias = task.bias ? load_rows(task.bias + row0, rows) : broadcast(0);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t token = first_token + t;
    if (task.planes.special && task.planes.special[token]) continue;
    F value = load(partial + t * kTileRows);
    if (task.bias) value = add(value, bias);
    if (task.position_bias && task.positions[token] < task.position_rows)
      value =
          add(value, load_rows(task.position_bias + task.positions[token] * task.out_features + row0, rows));
    value = apply(task.activation, value);
    if (task.residual)
      value = add(value, load_rows(task.residual + token * task.residual_stride + row0, rows));
    store_rows(task.y + token * task.y_stride + row0, rows, value);
  }
}

template <int TILES>
static void linear_tiles(const LinearTask& task, int64_t tile) {
  const TiledWeight& weight = task.weight;
  float* partial = task.scratch + kMaxTilesAtOnce * kKBlock * kTileRows;
  constexpr int64_t tile_stride = kTokenChunk * kTileRows;
  static_assert(kTokenChunk % kTokenBlock == 0);
  for (int64_t chunk = 0; chunk < task.tokens; chunk += kTokenChunk) {
    const int64_t chunk_tokens = task.tokens - chunk < kTokenChunk ? task.tokens - chunk : kTokenChunk;
    for (int64_t k0 = 0; k0 < weight.in_features; k0 += kKBlock) {
      const int64_t count = weight.in_features - k0 < kKBlock ? weight.in_features - k0 : kKBlock;
      const float* w[TILES];
      for (int i = 0; i < TILES; ++i)
        w[i] = decode_block(weight, tile + i, k0, count, task.scratch + i * kKBlock * kTileRows);
      for (int64_t t = 0; t < chunk_tokens; t += kTokenBlock) {
        const int64_t width = chunk_tokens - t < kTokenBlock ? chunk_tokens - t : kTokenBlock;
        const float* x = task.x_blocks + (chunk + t) * weight.in_features + k0 * width;
        multiply_any<TILES>(width, x, w, count, k0 == 0, partial + t * kTileRows, tile_stride);
      }
    }
    for (int i = 0; i < TILES; ++i)
      write_tile(task, tile + i, chunk, chunk_tokens, partial + i * tile_stride);
  }
}

static void linear(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  int64_t tile = first_tile;
  if (task.tokens <=
      kTokensOfManyTiles)  // few chains a tile: several tiles at once keep the multipliers busy
    for (; tile + kMaxTilesAtOnce <= last_tile; tile += kMaxTilesAtOnce)
      linear_tiles<kMaxTilesAtOnce>(task, tile);
  if constexpr (kTilesOfManyTokens > 1)
    for (; tile + kTilesOfManyTokens <= last_tile; tile += kTilesOfManyTokens)
      linear_tiles<kTilesOfManyTokens>(task, tile);
  for (; tile < last_tile; ++tile) linear_tiles<1>(task, tile);
}

static void decode_row(const TiledWeight& weight, int64_t row, bool accumulate, float* out) {
  const int bits = affine_bits(weight.kind);
  if (bits != 0 && weight.column_units == 0) return decode_affine_row(weight, row, bits, accumulate, out);
  const int64_t tile = row / kTileRows, lane = row % kTileRows;
  float block[kKBlock * kTileRows];
  for (int64_t k0 = 0; k0 < weight.in_features; k0 += kKBlock) {
    const int64_t count = weight.in_features - k0 < kKBlock ? weight.in_features - k0 : kKBlock;
    const float* w = decode_block(weight, tile, k0, count, block);
    for (int64_t k = 0; k < count; ++k) {
      const float value = w[k * kTileRows + lane];
      out[k0 + k] = accumulate ? out[k0 + k] + value : value;
    }
  }
}

}  // namespace ballast::BALLAST_ISA
