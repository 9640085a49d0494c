// Activations rounded to a grid (encodings/activation.h), one instruction set (see simd.h): to the values that the codes
// stand for, or to the codes as integers.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/plane_kernels.h"

namespace ballast::BALLAST_ISA {

static inline F negative(F a) {
  return sub(broadcast(0), a);
}
// Keeps a NaN in v.
static inline F clamp(F v, F low, F high) {
  return negative(max(negative(high), negative(max(low, v))));
}
// Ties to even, for sizes up to 2^22.
static inline F nearest(F v) {
  const F magic = broadcast(12582912.0f);  // 1.5 · 2^23
  return sub(add(v, magic), magic);
}
// The code of v nearest to x · inverse; bounds are whole numbers, so clamping first changes nothing.
static inline F nearest_code(F x, float inverse, float low, float high) {
  return nearest(clamp(mul(x, broadcast(inverse)), broadcast(low), broadcast(high)));
}

static inline F round_affine(const RoundTask& task, F x) {
  return mul(nearest_code(x, task.inverse, task.low, task.high), broadcast(task.step));
}
// One of the two codes is 0.
static inline F round_twin_sign(const RoundTask& task, F x) {
  const F fine = nearest_code(x, task.inverse, task.low, 0),
          coarse = nearest_code(x, task.coarse_inverse, 0, task.high);
  return fma(fine, broadcast(task.step), mul(coarse, broadcast(task.coarse_step)));
}
static inline F round_twin_size(const RoundTask& task, F x) {
  const F fine = nearest_code(x, task.inverse, 0, task.high + 1),
          coarse = nearest_code(x, task.coarse_inverse, 0, task.high);
  const F beyond = max(sub(fine, broadcast(task.high)), broadcast(0));  // 1 or 0
  return fma(mul(coarse, broadcast(task.coarse_step)), beyond,
             mul(mul(fine, broadcast(task.step)), sub(broadcast(1), beyond)));
}
static inline F round_logarithm(const RoundTask& task, F x) {
  const F ratio = clamp(mul(x, broadcast(task.inverse)), broadcast(0), broadcast(1));
  float lanes[kLanes], values[kLanes], factors[kLanes];
  uint32_t bits[kLanes], powers[kLanes];
  store(lanes, ratio);
  __builtin_memcpy(bits, lanes, sizeof bits);
  const int32_t last = task.last_code;
  const bool two = task.per_octave == 2;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t mantissa = bits[i] & 0x7FFFFFu;
    const int32_t exponent = int32_t(bits[i] >> 23) - 127;
    const int32_t code = two ? -2 * exponent - int32_t(mantissa > 0x1837F0u) - int32_t(mantissa > 0x5744FCu)
                             : -exponent - int32_t(mantissa > 0x3504F3u);
    const int32_t octaves = two ? (code + 1) / 2 : code;
    powers[i] = code >= last || exponent < -126 ? 0 : uint32_t(127 - octaves) << 23;
    factors[i] = two && code % 2 != 0 ? 1.41421356237f : 1.0f;
  }
  __builtin_memcpy(values, powers, sizeof values);
  // A ratio that is no number makes the result none.
  return fma(ratio, broadcast(0), mul(broadcast(task.step), mul(load(values), load(factors))));
}

template <class Round>
static inline void each_lane(const RoundTask& task, const Round& round) {
  int64_t i = 0;
  for (; i + kLanes <= task.count; i += kLanes) store(task.y + i, round(task, load(task.x + i)));
  if (i == task.count) return;
  float part[kLanes] = {};
  for (int64_t k = i; k < task.count; ++k) part[k - i] = task.x[k];
  store(part, round(task, load(part)));
  for (int64_t k = i; k < task.count; ++k) task.y[k] = part[k - i];
}
static void round_row(const RoundTask& task) {
  switch (task.kind) {
    case 0:
      return each_lane(task, round_affine);
    case 1:
      return each_lane(task, round_twin_sign);
    case 2:
      return each_lane(task, round_twin_size);
    default:
      return each_lane(task, round_logarithm);
  }
}

// Sixteen whole numbers as bytes, or as words.
#if defined(BALLAST_AVX512)
static inline void put_bytes(F v, int32_t* out, Sums& total) {
  const __m512i whole = _mm512_cvtps_epi32(v.v);
  total.v = _mm512_add_epi32(total.v, whole);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(whole));
}
static inline void put_words(F v, int32_t* out, Sums& total) {
  const __m512i whole = _mm512_cvtps_epi32(v.v);
  total.v = _mm512_add_epi32(total.v, whole);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(whole));
}
#elif defined(BALLAST_AVX2)
static inline __m256i whole_words(F v, Sums& total) {
  const __m256i lo = _mm256_cvtps_epi32(v.lo), hi = _mm256_cvtps_epi32(v.hi);
  total.lo = _mm256_add_epi32(total.lo, lo);
  total.hi = _mm256_add_epi32(total.hi, hi);
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xD8);
}
static inline void put_bytes(F v, int32_t* out, Sums& total) {
  const __m256i words = whole_words(v, total);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline void put_words(F v, int32_t* out, Sums& total) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), whole_words(v, total));
}
#else
template <class Number>
static void put_numbers(F v, int32_t* out, Sums& total) {
  Number numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const bool number = v.v[i] == v.v[i];
    const int32_t whole = number ? int32_t(v.v[i]) : 0;
    total.v[i] += whole;
    numbers[i] = Number(whole);
  }
  __builtin_memcpy(out, numbers, sizeof numbers);
}
static inline void put_bytes(F v, int32_t* out, Sums& total) {
  put_numbers<int8_t>(v, out, total);
}
static inline void put_words(F v, int32_t* out, Sums& total) {
  put_numbers<int16_t>(v, out, total);
}
#endif
static inline int32_t total_of(const Sums& sums) {
  int32_t lanes[kLanes], total = 0;
  __builtin_memcpy(lanes, &sums, sizeof lanes);
  for (int i = 0; i < kLanes; ++i) total = int32_t(uint32_t(total) + uint32_t(lanes[i]));
  return total;
}

// The digits of one group of one token, `stride` words from step to step; returns their sum.
template <bool WORDS>
static inline int32_t encode_group(const EncodeTask& task, const float* x, int64_t columns, int64_t steps,
                                   int64_t stride, int32_t* out, F& not_numbers) {
  constexpr int64_t kSteps = WORDS ? 8 : 4;  // of sixteen columns
  const RoundTask& round = task.round;
  const F shift = broadcast(round.offset);
  Sums total = no_sums();
  int64_t step = 0;
  for (int64_t k = 0; step < steps; k += kLanes) {
    F v = broadcast(0);
    if (k + kLanes <= columns) {
      v = load(x + k);
    } else if (k < columns) {
      float part[kLanes] = {};
      for (int64_t i = k; i < columns; ++i) part[i - k] = x[i];
      v = load(part);
    }
    F code;
    if (round.kind == 0) {
      code = sub(nearest_code(v, round.inverse, round.low, round.high), shift);
    } else {  // the codes of both ranges in units of the fine step
      const F coarse = nearest_code(v, round.coarse_inverse, 0, round.high);
      code = fma(coarse, broadcast(round.coarse_units), nearest_code(v, round.inverse, round.low, 0));
    }
    not_numbers = fma(code, broadcast(0), not_numbers);
    if (k + kLanes > columns) code = first(int(columns > k ? columns - k : 0), code, broadcast(0));
    int32_t words[8];
    if (WORDS) {
      put_words(code, words, total);
    } else {
      put_bytes(code, words, total);
    }
    for (int64_t i = 0; i < kSteps && step < steps; ++i, ++step) out[step * stride] = words[i];
  }
  return total_of(total);
}

template <bool WORDS>
static void encode_token(const EncodeTask& task, int64_t token, int64_t block, int64_t width) {
  const int64_t groups = task.in_features / task.group_size;
  const float* x = task.x + token * task.token_stride;
  F not_numbers = broadcast(0);
  int32_t* digits = task.out.digits;
  for (int64_t group = 0; group < groups; ++group) {
    const int32_t total =
        encode_group<WORDS>(task, x, task.group_size, task.group_steps, width,
                            digits + block * task.group_steps + (token - block), not_numbers);
    task.out.sums[group * task.tokens + token] = -total;
    digits += task.tokens * task.group_steps;
    x += task.group_size;
  }
  const float any = sum(not_numbers);
  task.out.special[token] = any != any;
}

static void encode(const EncodeTask& task, int64_t first_block, int64_t last_block) {
  for (int64_t index = first_block; index < last_block; ++index) {
    const int64_t block = index * kPlaneColumns;
    const int64_t width = task.tokens - block < kPlaneColumns ? task.tokens - block : kPlaneColumns;
    for (int64_t token = block; token < block + width; ++token) {
      if (task.words) {
        encode_token<true>(task, token, block, width);
      } else {
        encode_token<false>(task, token, block, width);
      }
    }
  }
}

}  // namespace ballast::BALLAST_ISA
