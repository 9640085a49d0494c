// Rows of f32 to scaled binary16 and back, one instruction set (see simd.h and ops/half_rows.h).
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

// f32 -> binary16, round to nearest even, overflow to infinity, for single elements.
static inline uint16_t float_to_half(float value) {
#if defined(BALLAST_AVX512) || defined(BALLAST_AVX2)
  return uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  union {
    float value;
    uint32_t bits;
  } in = {value}, shifted;
  const uint16_t sign = uint16_t((in.bits >> 16) & 0x8000u);
  const uint32_t magnitude = in.bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return uint16_t(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at bit 24 below the point
    in.bits = magnitude;
    shifted.value = in.value + 0.5f;
    return uint16_t(sign | (shifted.bits - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
#endif
}

static inline void store_half(uint16_t* p, F a) {
#if defined(BALLAST_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(BALLAST_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(a.v[i]);
#endif
}

static inline float power_of_two(int exponent) {
  union {
    uint32_t bits;
    float value;
  } out = {uint32_t(exponent + 127) << 23};
  return out.value;
}

// Returns the scale.
static float store_half_row(const float* x, int64_t width, uint16_t* halves) {
  uint32_t largest = 0;  // magnitudes order as their bits do
  for (int64_t i = 0; i < width; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  // Of the largest as binary16 will round it, so that a row that is stored again keeps its scale.
  int exponent = int((largest + 0x1000u) >> 23) - 127 - 14;
  if (largest >= 0x7F800000u) exponent = 0;  // not finite: the element must stay so
  if (exponent < -113) exponent = -113;      // so that the reciprocal is a normal number
  const float scale = power_of_two(exponent), reciprocal = power_of_two(-exponent);
  int64_t i = 0;
  for (const F factor = broadcast(reciprocal); i + kLanes <= width; i += kLanes)
    store_half(halves + i, mul(load(x + i), factor));
  for (; i < width; ++i) halves[i] = float_to_half(x[i] * reciprocal);
  return scale;
}

static void load_half_row(const uint16_t* halves, float scale, int64_t width, float* x) {
  int64_t i = 0;
  for (const F factor = broadcast(scale); i + kLanes <= width; i += kLanes)
    store(x + i, mul(load_half(halves + i), factor));
  for (; i < width; ++i) x[i] = half_to_float(halves[i]) * scale;
}

}  // namespace ballast::BALLAST_ISA
