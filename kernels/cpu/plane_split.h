// Activations to digits (PlaneBlocks in kernel_table.h), one instruction set (see simd.h).
//
// With several planes a chunk's step is the smallest power of two that keeps every |X| within kMost, X = x / step
// rounded to nearest even; balanced digits of base 256 (or 4096 beside 8-bit codes) then represent X exactly. With
// one plane step = max|x| / 127 (or 32767 beside 8-bit codes, whose products are 16-bit anyway).
#pragma once

#include "kernels/cpu/planes_simd.h"

namespace ballast::BALLAST_ISA {

inline constexpr float kMost = 8355711;           // 127 · (1 + 2^8 + 2^16), what three balanced bytes reach
inline constexpr uint32_t kSmallest = 49u << 23;  // bits of 2^-78: smaller maxima count as this one

struct Quantum {
  float step, inverse;
};
// `largest`: the bits of the chunk's max|x|, finite.
static inline Quantum quantum(uint32_t largest, int planes, int bits) {
  if (largest < kSmallest) largest = kSmallest;
  float most;
  __builtin_memcpy(&most, &largest, sizeof most);
  if (planes == 1) {
    const float levels = bits == 8 ? 32767.0f : 127.0f;
    return {most / levels, levels / most};
  }
  const auto power = [](uint32_t biased) {
    const uint32_t pattern = biased << 23;
    float value;
    __builtin_memcpy(&value, &pattern, sizeof value);
    return value;
  };
  uint32_t exponent = (largest >> 23) - 22;
  if (most * power(254 - exponent) > kMost) ++exponent;
  return {power(exponent), power(254 - exponent)};
}

// Digits of one chunk of one token: word (step, plane) at out[step · stride + plane]; sums[p] = Σ digits. x holds
// `padded` floats, a whole number of eights, zeros beyond the chunk.
#if defined(BALLAST_AVX2) || defined(BALLAST_AVX512)

static uint32_t largest_bits(const float* x, int64_t count) {
  __m256i most = _mm256_setzero_si256();
  const __m256i all = _mm256_set1_epi32(0x7FFFFFFF);
  for (int64_t k = 0; k < count; k += 8)
    most = _mm256_max_epu32(
        most, _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k)), all));
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epu32(four, _mm_srli_si128(four, 8));
  four = _mm_max_epu32(four, _mm_srli_si128(four, 4));
  return uint32_t(_mm_cvtsi128_si32(four));
}

// The first N words of four, and no more: what lies behind them may be another token's. From the register, since
// loads of parts of what was just stored are slow.
template <int N>
static inline void store_words(int32_t* to, __m128i words) {
  if constexpr (N >= 2) _mm_storel_epi64(reinterpret_cast<__m128i*>(to), words);
  if constexpr (N != 2) to[N - 1] = _mm_extract_epi32(words, N - 1);
}

template <int PLANES, bool WORDS>
static void put_digits(const float* x, int64_t steps, float inverse, int64_t stride, int32_t* out,
                       int32_t* sums) {
  // Four columns, 16 bytes, become the words of one step, or of two with WORDS.
  const __m256i order = _mm256_broadcastsi128_si256(
      WORDS ? (PLANES == 2 ? _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)
                           : _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1))
            : (PLANES == 3 ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1)
                           : _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)));
  constexpr int kStepsOfFour = WORDS ? 2 : 1;
  const __m256 scale = _mm256_set1_ps(inverse);
  __m256i total = _mm256_setzero_si256();
  for (int64_t step = 0; step < steps; step += 2 * kStepsOfFour, x += 8) {
    __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), scale));
    if (!WORDS && PLANES == 3) {
      const __m256i bias = _mm256_set1_epi32(0x808080);
      v = _mm256_xor_si256(_mm256_add_epi32(v, bias), bias);
    }
    if (WORDS && PLANES == 2) {
      const __m256i half = _mm256_set1_epi32(2048);
      const __m256i upper = _mm256_srai_epi32(_mm256_add_epi32(v, half), 12);
      const __m256i lower = _mm256_sub_epi32(v, _mm256_slli_epi32(upper, 12));
      v = _mm256_blend_epi16(lower, _mm256_slli_epi32(upper, 16), 0xAA);
    }
    v = _mm256_shuffle_epi8(v, order);
    const __m256i pairs = WORDS ? v : _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    const __m128i halves[2] = {_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)};
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kStepsOfFour; ++i) {
      // Below 8 bits a chunk's steps are even in number.
      if (WORDS && step + i >= steps) break;
      const __m128i half = halves[i / kStepsOfFour];
      store_words<PLANES>(out + i * stride, WORDS && i % 2 ? _mm_srli_si128(half, PLANES * 4) : half);
    }
    out += 2 * kStepsOfFour * stride;
  }
  int32_t words[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), total);
  for (int p = 0; p < PLANES; ++p)
    sums[p] =
        WORDS ? words[p] + words[PLANES + p] + words[4 + p] + words[4 + PLANES + p] : words[p] + words[4 + p];
}

#else

static uint32_t largest_bits(const float* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t k = 0; k < count; ++k) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7FFFFFFFu;
    if (bits > most) most = bits;
  }
  return most;
}

template <int PLANES, bool WORDS>
static void put_digits(const float* x, int64_t steps, float inverse, int64_t stride, int32_t* out,
                       int32_t* sums) {
  constexpr int kColumns = WORDS ? 2 : 4;
  constexpr int kBits = PLANES == 1 ? 0 : WORDS ? 12 : 8;
  for (int p = 0; p < PLANES; ++p) sums[p] = 0;
  for (int64_t step = 0; step < steps; ++step, x += kColumns, out += stride) {
    int8_t bytes[PLANES][4];
    int16_t halves[PLANES][2];
    for (int j = 0; j < kColumns; ++j) {
      int32_t rest = int32_t(__builtin_rintf(x[j] * inverse));
      for (int p = 0; p < PLANES; ++p) {
        int32_t digit = rest;
        if (p + 1 < PLANES) {
          const int32_t upper = (rest + (1 << kBits) / 2) >> kBits;
          digit = rest - upper * (1 << kBits);
          rest = upper;
        }
        sums[p] += digit;
        if (WORDS) {
          halves[p][j % 2] = int16_t(digit);
        } else {
          bytes[p][j] = int8_t(digit);
        }
      }
    }
    if (WORDS) {
      __builtin_memcpy(out, halves, sizeof halves);
    } else {
      __builtin_memcpy(out, bytes, sizeof bytes);
    }
  }
}

#endif

template <int PLANES, bool WORDS>
static void split_token(const SplitTask& task, int64_t token, int64_t block, int64_t width) {
  const ChunkShape shape = chunk_shape(task.bits, task.group_size);
  const int64_t chunks = task.in_features / task.group_size * shape.chunks();
  const float* x = task.x + token * task.token_stride;
  uint32_t most_of_all = 0;
  int32_t* digits = task.out.digits;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t in_group = chunk % shape.chunks();
    const int64_t columns = shape.columns(in_group), steps = shape.steps(in_group);
    const int64_t padded = (steps * columns_per_step(task.bits) + 7) / 8 * 8;
    float copy[kChunk];
    const float* from = x;
    if (padded != columns) {
      for (int64_t k = 0; k < columns; ++k) copy[k] = x[k];
      for (int64_t k = columns; k < padded; ++k) copy[k] = 0;
      from = copy;
    }
    uint32_t most = largest_bits(from, padded);
    if (most > most_of_all) most_of_all = most;
    Quantum scale = {0, 0};
    static const float kNothing[kChunk] = {};
    if (most >= 0x7F800000u) {
      from = kNothing;
    } else {
      scale = quantum(most, PLANES, task.bits);
    }
    int32_t* out = digits + block * steps * PLANES + (token - block) * PLANES;
    int32_t sums[PLANES];
    put_digits<PLANES, WORDS>(from, steps, scale.inverse, width * PLANES, out, sums);
    task.out.steps[chunk * task.tokens + token] = scale.step;
    for (int p = 0; p < PLANES; ++p) task.out.sums[(chunk * task.tokens + token) * PLANES + p] = -sums[p];
    digits += task.tokens * steps * PLANES;
    x += columns;
  }
  task.out.special[token] = most_of_all >= 0x7F800000u;
}

static void split(const SplitTask& task, int64_t first_block, int64_t last_block) {
  const int64_t per_block = kPlaneColumns / task.out.planes;
  for (int64_t index = first_block; index < last_block; ++index) {
    const int64_t block = index * per_block;
    const int64_t width = task.tokens - block < per_block ? task.tokens - block : per_block;
    for (int64_t token = block; token < block + width; ++token) {
      if (task.bits == 8 && task.out.planes == 1) {
        split_token<1, true>(task, token, block, width);
      } else if (task.bits == 8) {
        split_token<2, true>(task, token, block, width);
      } else if (task.out.planes == 1) {
        split_token<1, false>(task, token, block, width);
      } else {
        split_token<3, false>(task, token, block, width);
      }
    }
  }
}

}  // namespace ballast::BALLAST_ISA
