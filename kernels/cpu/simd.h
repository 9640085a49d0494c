// Sixteen f32 lanes for the instruction set this file is compiled for. Included only by the isa_*.cpp files,
// which set BALLAST_ISA (the namespace) and one of BALLAST_AVX512, BALLAST_AVX2, or neither for the scalar
// reference.
//
// Every operation gives the same bits on all three: products and sums are fused only where `fma` says so, and
// `sum` folds the lanes in one fixed order. Nothing here may call inline library templates: the linker would
// be free to keep the copy compiled for the newest instruction set.
#pragma once

#include <cstdint>
#if defined(BALLAST_AVX512) || defined(BALLAST_AVX2)
#include <immintrin.h>
#endif

namespace ballast::BALLAST_ISA {

inline constexpr int kLanes = 16;

// Binary16 -> f32, for single elements and for the scalar build.
#if defined(BALLAST_AVX512) || defined(BALLAST_AVX2)
static inline float half_to_float(uint16_t h) {
  return _cvtsh_ss(h);
}
#else
static inline float half_to_float(uint16_t h) {
  union {
    uint32_t bits;
    float value;
  } out;
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1Fu, mantissa = h & 0x3FFu;
  if (exponent == 0x1Fu) {
    out.bits = sign | 0x7F800000u | (mantissa << 13);
  } else if (exponent != 0) {
    out.bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    out.value = float(mantissa) * 0x1p-24f;
    out.bits |= sign;
  }
  return out.value;
}
#endif

#if defined(BALLAST_AVX512)

struct F {
  __m512 v;
};
static inline F load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
static inline void store(float* p, F a) {
  _mm512_storeu_ps(p, a.v);
}
static inline F broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
static inline F fma(F a, F b, F c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline F add(F a, F b) {
  return {_mm512_add_ps(a.v, b.v)};
}
static inline F sub(F a, F b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
static inline F mul(F a, F b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
static inline F max(F a, F b) {
  return {_mm512_max_ps(a.v, b.v)};
}
static inline F load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline F load_bfloat(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
static inline F load_bytes(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline F load_signed_bytes(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Sixteen codes of BITS bits each, lowest bits first. The upper eight are read from the last four bytes, so
// that nothing beyond the codes is touched.
template <int BITS>
static inline F load_codes(const uint8_t* p) {
  if constexpr (BITS == 8) return load_bytes(p);
  constexpr int B = BITS % 8, kUpper = 32 - 8 * B;
  int32_t lower, upper;
  __builtin_memcpy(&lower, p, 4);
  __builtin_memcpy(&upper, p + 2 * B - 4, 4);
  const __m512i shifts =
      _mm512_setr_epi32(0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B, kUpper, kUpper + B, kUpper + 2 * B,
                        kUpper + 3 * B, kUpper + 4 * B, kUpper + 5 * B, kUpper + 6 * B, kUpper + 7 * B);
  const __m512i fields = _mm512_mask_set1_epi32(_mm512_set1_epi32(lower), 0xFF00, upper);
  return {_mm512_cvtepi32_ps(
      _mm512_and_si512(_mm512_srlv_epi32(fields, shifts), _mm512_set1_epi32((1 << B) - 1)))};
}
// Words of two-bit codes, the next one in the two highest bits.
struct Codes {
  __m512i v;
};
static inline Codes load_words(const uint8_t* p) {
  return {_mm512_loadu_si512(p)};
}
static inline Codes skip(Codes a, int count) {
  return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(2 * count))};
}
static inline Codes skip_one(Codes a) {
  return {_mm512_slli_epi32(a.v, 2)};
}
// of[code], lane by lane.
static inline F choose(Codes codes, const F* of) {
  const __mmask16 low = _mm512_test_epi32_mask(codes.v, _mm512_set1_epi32(1 << 30));
  const __mmask16 high = _mm512_movepi32_mask(codes.v);
  return {_mm512_mask_blend_ps(high, _mm512_mask_blend_ps(low, of[0].v, of[1].v),
                               _mm512_mask_blend_ps(low, of[2].v, of[3].v))};
}
// Lanes below `count` from a, the others from b.
static inline F first(int count, F a, F b) {
  return {_mm512_mask_blend_ps(__mmask16((1u << count) - 1u), b.v, a.v)};
}
// 2^n for integral lanes n in [-126, 127].
static inline F exp2_integral(F n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
static inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v),
                                     _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(BALLAST_AVX2)

struct F {
  __m256 lo, hi;
};
static inline F load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void store(float* p, F a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
static inline F broadcast(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline F fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline F add(F a, F b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static inline F sub(F a, F b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static inline F mul(F a, F b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline F max(F a, F b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
static inline F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline F load_bfloat(const uint16_t* p) {
  const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
static inline F load_bytes(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
static inline F load_signed_bytes(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
template <int BITS>
static inline F load_codes(const uint8_t* p) {
  if constexpr (BITS == 8) return load_bytes(p);
  constexpr int B = BITS % 8, kUpper = 32 - 8 * B;
  int32_t lower, upper;
  __builtin_memcpy(&lower, p, 4);
  __builtin_memcpy(&upper, p + 2 * B - 4, 4);
  const __m256i mask = _mm256_set1_epi32((1 << B) - 1);
  const __m256i lo = _mm256_setr_epi32(0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B);
  const __m256i hi = _mm256_add_epi32(lo, _mm256_set1_epi32(kUpper));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(lower), lo), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(upper), hi), mask))};
}
struct Codes {
  __m256i lo, hi;
};
static inline Codes load_words(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
static inline Codes skip(Codes a, int count) {
  const __m128i bits = _mm_cvtsi32_si128(2 * count);
  return {_mm256_sll_epi32(a.lo, bits), _mm256_sll_epi32(a.hi, bits)};
}
static inline Codes skip_one(Codes a) {
  return {_mm256_slli_epi32(a.lo, 2), _mm256_slli_epi32(a.hi, 2)};
}
// A blend looks at the highest bit.
static inline __m256 choose8(__m256i codes, __m256 of0, __m256 of1, __m256 of2, __m256 of3) {
  const __m256 high = _mm256_castsi256_ps(codes), low = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 1));
  return _mm256_blendv_ps(_mm256_blendv_ps(of0, of1, low), _mm256_blendv_ps(of2, of3, low), high);
}
static inline F choose(Codes codes, const F* of) {
  return {choose8(codes.lo, of[0].lo, of[1].lo, of[2].lo, of[3].lo),
          choose8(codes.hi, of[0].hi, of[1].hi, of[2].hi, of[3].hi)};
}
static inline F first(int count, F a, F b) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), index));
  const __m256 hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), index));
  return {_mm256_blendv_ps(b.lo, a.lo, lo), _mm256_blendv_ps(b.hi, a.hi, hi)};
}
static inline F exp2_integral(F n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.lo), bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.hi), bias), 23))};
}
static inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#else

struct F {
  float v[kLanes];
};
#define BALLAST_EACH(expression)                            \
  F out;                                                    \
  for (int i = 0; i < kLanes; ++i) out.v[i] = (expression); \
  return out
static inline F load(const float* p) {
  BALLAST_EACH(p[i]);
}
static inline void store(float* p, F a) {
  for (int i = 0; i < kLanes; ++i) p[i] = a.v[i];
}
static inline F broadcast(float x) {
  BALLAST_EACH(x);
}
static inline F fma(F a, F b, F c) {
  BALLAST_EACH(__builtin_fmaf(a.v[i], b.v[i], c.v[i]));
}
static inline F add(F a, F b) {
  BALLAST_EACH(a.v[i] + b.v[i]);
}
static inline F sub(F a, F b) {
  BALLAST_EACH(a.v[i] - b.v[i]);
}
static inline F mul(F a, F b) {
  BALLAST_EACH(a.v[i] * b.v[i]);
}
static inline F max(F a, F b) {
  BALLAST_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
static inline F load_half(const uint16_t* p) {
  BALLAST_EACH(half_to_float(p[i]));
}
static inline F load_bfloat(const uint16_t* p) {
  F out;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = uint32_t(p[i]) << 16;
    __builtin_memcpy(&out.v[i], &bits, sizeof bits);
  }
  return out;
}
static inline F load_bytes(const uint8_t* p) {
  BALLAST_EACH(float(p[i]));
}
static inline F load_signed_bytes(const int8_t* p) {
  BALLAST_EACH(float(p[i]));
}
template <int BITS>
static inline F load_codes(const uint8_t* p) {
  F out;
  for (int half = 0; half < 2; ++half) {
    uint64_t field = 0;
    __builtin_memcpy(&field, p + half * BITS, BITS);
    for (int i = 0; i < 8; ++i) out.v[8 * half + i] = float((field >> (BITS * i)) & ((1u << BITS) - 1u));
  }
  return out;
}
struct Codes {
  uint32_t v[kLanes];
};
static inline Codes load_words(const uint8_t* p) {
  Codes out;
  __builtin_memcpy(out.v, p, sizeof out.v);
  return out;
}
static inline Codes skip(Codes a, int count) {
  for (uint32_t& word : a.v) word <<= 2 * count;
  return a;
}
static inline Codes skip_one(Codes a) {
  return skip(a, 1);
}
static inline F choose(Codes codes, const F* of) {
  BALLAST_EACH(of[codes.v[i] >> 30].v[i]);
}
static inline F first(int count, F a, F b) {
  BALLAST_EACH(i < count ? a.v[i] : b.v[i]);
}
static inline F exp2_integral(F n) {
  F out;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = uint32_t(int32_t(n.v[i]) + 127) << 23;
    __builtin_memcpy(&out.v[i], &bits, sizeof bits);
  }
  return out;
}
static inline float sum(F a) {
  float part[kLanes];
  store(part, a);
  for (int half = kLanes / 2; half >= 1; half /= 2)
    for (int i = 0; i < half; ++i) part[i] = part[i] + part[i + half];
  return part[0];
}
#undef BALLAST_EACH

#endif

// e^x for x <= 88, relative error below 2 ulp; e^-87 below -87. Range reduction by ln 2 in two parts, then a
// Taylor polynomial of degree 7 on [-ln2/2, ln2/2].
static inline F exp(F x) {
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F clamped = max(x, broadcast(-87.0f));
  const F n = sub(fma(clamped, broadcast(1.44269504088896341f), magic), magic);
  const F r = fma(n, broadcast(-1.42860682030941723212e-6f), fma(n, broadcast(-0.693145751953125f), clamped));
  F p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return mul(p, exp2_integral(n));
}

// x/2·(1 + erf(x/√2)) = max(x, 0) − |x|·Φ(−|x|), absolute error below 5e-8 + 1e-7·|x|. Φ(−a) = e^−q(a) with q a
// polynomial fitted to −ln Φ(−a) on [0, 6], weighted by what its error costs; Φ(−6) is 1e-9.
static inline F gelu(F x) {
  constexpr float kCoefficients[] = {-2.54298896606997e-07f, 5.10766858496936e-06f,  -4.256752799847163e-05f,
                                     1.6592541942372918e-4f, 4.986847852705978e-05f, -4.873569123446941e-3f,
                                     3.639132156968117e-2f,  0.31829124689102173f,   0.7978875041007996f,
                                     0.6931470036506653f};
  const F size = max(x, sub(broadcast(0), x));
  const F a = sub(broadcast(0), max(sub(broadcast(0), size), broadcast(-6.0f)));
  F q = broadcast(kCoefficients[0]);
  for (int i = 1; i < 10; ++i) q = fma(q, a, broadcast(kCoefficients[i]));
  return sub(max(x, broadcast(0)), mul(size, exp(sub(broadcast(0), q))));
}

}  // namespace ballast::BALLAST_ISA
