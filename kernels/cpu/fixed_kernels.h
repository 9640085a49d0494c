// Linear layers whose input has a grid of its own, fixed beforehand (encodings/activation.h): integer sums of weight
// codes and input codes, one instruction set (see simd.h).
//
//   y = Σ_groups  scale · s · I,     I = Σ_k (code_k − zero) · (d_k + offset)     (half zero points: see plane_kernels.h)
//
// with d the digits that `encode` makes. I is exact: bytes times bytes, or words beside 8-bit codes where an instruction
// set has no product of bytes that cannot saturate (AVX2's maddubs adds pairs in 16 bits) or where d needs 16 bits.
// So I, and with it y, is the same on all of them.
//
// Work partition: a thread owns whole tiles of 16 output rows. Some steps of a group are unpacked into L1, then blocks
// of tokens run over them, all their sums in registers; between such passes the sums rest in the scratch space.
#pragma once

#include "kernels/cpu/activation_kernels.h"
#include "kernels/cpu/plane_kernels.h"

namespace ballast::BALLAST_ISA {

#if defined(BALLAST_AVX2)
inline constexpr bool kBytesOfAllCodes = false;
#else
inline constexpr bool kBytesOfAllCodes = true;
#endif
/// Chunks of a group in one pass: 16 KiB of unpacked codes.
inline constexpr int64_t kChunksOfPass = 4;

// Two steps of two columns become one of four.
#if defined(BALLAST_AVX512)
static inline V join_steps(const uint8_t* p) {
  const __m512i lower = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
  return {_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16))};
}
#elif !defined(BALLAST_AVX2)
static inline V join_steps(const uint8_t* p) {
  V out;
  for (int row = 0; row < kLanes; ++row) {
    __builtin_memcpy(out.b + 4 * row, p + 2 * row, 2);
    __builtin_memcpy(out.b + 4 * row + 2, p + 32 + 2 * row, 2);
  }
  return out;
}
#endif

// FORM is the width whose products `dot_unpacked` takes: 8 for words, else bytes.
template <int BITS, int FORM>
static void unpack_fixed(const uint8_t* codes, int64_t steps, uint8_t* out) {
  if constexpr (BITS == FORM) {
    unpack<BITS>(codes, steps, out);
  } else {
#if !defined(BALLAST_AVX2)
    for (int64_t i = 0; i < steps; ++i)
      store_step(out + i * kVectorBytes, join_steps(codes + i * kVectorBytes));
#endif
  }
}

struct FixedBlock {
  const uint8_t* w;
  int64_t steps;
  const int32_t* x;           ///< [steps][tokens]
  const int32_t* digit_sums;  ///< of the group
  Sums zeros, rows;
  F scale;
  int32_t columns_offset;  ///< columns · offset
  bool first, last;        ///< pass of the group
  bool fresh;              ///< y is still empty
  Sums* kept;
  float* partial;
};
template <int FORM, bool HALF_ZEROS, int TOKENS>
static void fixed_block(const FixedBlock& task) {
  const auto of_zeros = [&](int t) { return times(task.zeros, task.digit_sums[t] - task.columns_offset); };
  Sums sums[TOKENS];
  for (int t = 0; t < TOKENS; ++t)
    sums[t] = !task.first ? task.kept[t] : HALF_ZEROS ? no_sums() : of_zeros(t);
  dot_unpacked<FORM, TOKENS>(task.w, task.steps, task.x, sums);
  for (int t = 0; t < TOKENS; ++t) {
    if (!task.last) {
      task.kept[t] = sums[t];
      continue;
    }
    float* to = task.partial + t * kTileRows;
    const F y = task.fresh ? broadcast(0) : load(to);
    Sums whole = plus(sums[t], task.rows);
    if constexpr (HALF_ZEROS) whole = plus(left_sums<1>(whole), of_zeros(t));
    store(to, fma(to_float(whole), task.scale, y));
  }
}
template <int FORM, bool HALF_ZEROS, int TOKENS = kPlaneColumns>
static inline void any_fixed_block(int64_t tokens, const FixedBlock& task) {
  if constexpr (TOKENS > 0) {
    if (tokens == TOKENS) return fixed_block<FORM, HALF_ZEROS, TOKENS>(task);
    any_fixed_block<FORM, HALF_ZEROS, TOKENS - 1>(tokens, task);
  }
}

template <class Groups, int FORM>
static void fixed_tokens(const LinearTask& task, int64_t tile, int64_t first, int64_t last) {
  constexpr int BITS = Groups::kBits;
  constexpr int64_t kHalf = BITS == FORM ? 1 : 2;  // packed steps in one unpacked step
  const TiledWeight& weight = task.weight;
  const ChunkShape shape = chunk_shape(BITS, weight.group_size);
  const int64_t group_steps = shape.group_steps() / kHalf;
  uint8_t* unpacked = reinterpret_cast<uint8_t*>(task.scratch);
  Sums* kept = reinterpret_cast<Sums*>(unpacked + kChunksOfPass * kMaxSteps * kVectorBytes);
  float* partial = reinterpret_cast<float*>(kept + kTokenChunk);
  static_assert(sizeof(Sums) == kTileRows * sizeof(float) &&
                kChunksOfPass * kMaxSteps * kVectorBytes / 4 + 2 * kTokenChunk * kTileRows <=
                    linear_scratch_floats());
  const uint8_t* at = weight.data + tile * weight.tile_bytes;
  const int32_t *x = task.planes.digits, *digit_sums = task.planes.sums;
  const int32_t ones = FORM == 8 ? 0x00010001 : 0x01010101;
  for (int64_t k = 0; k < weight.in_features; k += weight.group_size) {
    const typename Groups::Facts facts = Groups::facts(weight, at);
    at += Groups::fact_bytes(weight);
    FixedBlock block{.zeros = facts.zeros,
                     .rows = no_sums(),
                     .scale = mul(facts.scale, broadcast(task.input_step)),
                     .columns_offset = int32_t(weight.group_size) * task.input_offset,
                     .fresh = k == 0};
    int64_t done = 0;  // steps of the group
    for (int64_t chunk = 0; chunk < shape.chunks();) {
      int64_t steps = 0;
      const int64_t begin = chunk;
      for (; chunk < shape.chunks() && chunk < begin + kChunksOfPass; ++chunk) {
        const int64_t count = shape.steps(chunk) / kHalf;
        unpack_fixed<BITS, FORM>(at, count, unpacked + steps * kVectorBytes);
        at += shape.steps(chunk) * bytes_per_step(BITS);
        steps += count;
      }
      if (task.input_offset != 0) {
        Sums rows = no_sums();
        for (int64_t i = 0; i < steps; ++i) {
          Partial<FORM> one = no_partial<FORM>();
          dot<FORM>(one, load_step(unpacked + i * kVectorBytes), ones);
          flush_partial<FORM>(rows, one);
        }
        block.rows = plus(block.rows, times(rows, task.input_offset));
      }
      block.w = unpacked;
      block.steps = steps;
      block.first = begin == 0;
      block.last = chunk == shape.chunks();
      for (int64_t t = first; t < last; t += kPlaneColumns) {
        const int64_t width = task.tokens - t < kPlaneColumns ? task.tokens - t : kPlaneColumns;
        block.x = x + t * group_steps + done * width;
        block.digit_sums = digit_sums + t;
        block.kept = kept + (t - first);
        block.partial = partial + (t - first) * kTileRows;
        any_fixed_block<FORM, Groups::kHalfZeros>(width, block);
      }
      done += steps;
    }
    x += task.tokens * group_steps;
    digit_sums += task.tokens;
  }
  write_tile(task, tile, first, last - first, partial);
}

template <class Groups, int FORM>
static void fixed_tiles(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  static_assert(kTokenChunk % kPlaneColumns == 0);
  for (int64_t t = 0; t < task.tokens; t += kTokenChunk)
    for (int64_t tile = first_tile; tile < last_tile; ++tile)
      fixed_tokens<Groups, FORM>(task, tile, t,
                                 task.tokens - t < kTokenChunk ? task.tokens : t + kTokenChunk);
}

template <int BITS>
static void fixed_tiles_of(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  if (task.weight.half_zeros) return fixed_tiles<AffineGroups<BITS, true>, BITS>(task, first_tile, last_tile);
  fixed_tiles<AffineGroups<BITS>, BITS>(task, first_tile, last_tile);
}

static void linear_fixed(const LinearTask& task, int64_t first_tile, int64_t last_tile) {
  switch (task.weight.kind) {
    case TileKind::affine2:
      return fixed_tiles_of<2>(task, first_tile, last_tile);
    case TileKind::affine3:
      return fixed_tiles_of<3>(task, first_tile, last_tile);
    case TileKind::affine4:
      return fixed_tiles_of<4>(task, first_tile, last_tile);
    case TileKind::affine8:
      if constexpr (kBytesOfAllCodes)
        if (!task.input_words) return fixed_tiles<AffineGroups<8>, 4>(task, first_tile, last_tile);
      return fixed_tiles<AffineGroups<8>, 8>(task, first_tile, last_tile);
    default:
      __builtin_trap();
  }
}

}  // namespace ballast::BALLAST_ISA
