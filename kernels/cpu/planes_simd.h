// One step of codes against one word of activations in sixteen rows (see plane_layout.h), for the instruction set
// this file is compiled for. All sums are exact integers, so the three agree whatever the order of their additions.
#pragma once

#include "kernels/cpu/plane_layout.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

template <bool FIRST, class A, class B>
struct Choice {
  using type = A;
};
template <class A, class B>
struct Choice<false, A, B> {
  using type = B;
};

// V: 64 bytes of codes. Sums: 16 exact 32-bit sums. Bytes: what byte products are added to before they go to Sums;
// it holds kFlushSteps<BITS> steps, because a pair of products is at most 2 · (2^BITS − 1) · 128 in size.

#if defined(BALLAST_AVX512)

struct V {
  __m512i v;
};
struct Sums {
  __m512i v;
};
using Bytes = Sums;
template <int BITS>
inline constexpr int64_t kFlushSteps = kMaxSteps;
// Sums of each column that steps take turns in: five cycles pass before one can be added to again.
template <int COLUMNS>
inline constexpr int kChains = COLUMNS == 1   ? 4
                               : COLUMNS <= 3 ? 2
                                              : 1;

static inline V load_codes64(const uint8_t* p) {
  return {_mm512_loadu_si512(p)};
}
static inline V widen32(const uint8_t* p) {
  return {_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Bytes 0 … 31 as they are, then the same shifted right by four bits.
static inline V load_upper32(const uint8_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_inserti64x4(_mm512_castsi256_si512(bits), _mm256_srli_epi16(bits, 4), 1)};
}
static inline void store_step(uint8_t* p, V a) {
  _mm512_storeu_si512(p, a.v);
}
static inline V load_step(const uint8_t* p) {
  return {_mm512_loadu_si512(p)};
}
static inline V mask(V a, int bits) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(char(bits)))};
}
template <int N>
static inline V right(V a) {
  return {_mm512_srli_epi16(a.v, N)};
}
template <int N>
static inline V left(V a) {
  return {_mm512_slli_epi16(a.v, N)};
}
static inline V either(V a, V b) {
  return {_mm512_or_si512(a.v, b.v)};
}
static inline V meet(V a, V b) {
  return {_mm512_and_si512(a.v, b.v)};
}
// The bits of `a` where `bits` has ones, those of `b` elsewhere.
static inline V choose_bits(int bits, V a, V b) {
  return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(char(bits)), a.v, b.v, 0xCA)};
}
static inline Sums no_sums() {
  return {_mm512_setzero_si512()};
}
static inline Bytes no_bytes() {
  return no_sums();
}
static inline void dot_bytes(Bytes& sums, V codes, int32_t x) {
  sums.v = _mm512_dpbusd_epi32(sums.v, codes.v, _mm512_set1_epi32(x));
}
static inline void dot_words(Sums& sums, V codes, int32_t x) {
  sums.v = _mm512_dpwssd_epi32(sums.v, codes.v, _mm512_set1_epi32(x));
}
static inline void flush(Sums& sums, Bytes bytes) {
  sums.v = _mm512_add_epi32(sums.v, bytes.v);
}
static inline Sums right_sums(Sums a, int bits) {
  return {_mm512_sra_epi32(a.v, _mm_cvtsi32_si128(bits))};
}
static inline Sums widen_zeros(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline Sums times(Sums a, int32_t x) {
  return {_mm512_mullo_epi32(a.v, _mm512_set1_epi32(x))};
}
template <int N>
static inline Sums left_sums(Sums a) {
  return {_mm512_slli_epi32(a.v, N)};
}
static inline Sums plus(Sums a, Sums b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
static inline F to_float(Sums a) {
  return {_mm512_cvtepi32_ps(a.v)};
}

#elif defined(BALLAST_AVX2)

struct V {
  __m256i lo, hi;
};
struct Sums {
  __m256i lo, hi;
};
struct Bytes {
  __m256i lo, hi;  // 16-bit
};
template <int BITS>
inline constexpr int64_t kFlushSteps = BITS == 4   ? 8
                                       : BITS == 3 ? 16
                                                   : 32;
template <int COLUMNS>
inline constexpr int kChains = 1;

static inline __m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
static inline V load_codes64(const uint8_t* p) {
  return {load256(p), load256(p + 32)};
}
static inline V widen32(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
static inline V load_upper32(const uint8_t* p) {
  const __m256i bits = load256(p);
  return {bits, _mm256_srli_epi16(bits, 4)};
}
static inline void store_step(uint8_t* p, V a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}
static inline V load_step(const uint8_t* p) {
  return load_codes64(p);
}
static inline V mask(V a, int bits) {
  const __m256i m = _mm256_set1_epi8(char(bits));
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
template <int N>
static inline V right(V a) {
  return {_mm256_srli_epi16(a.lo, N), _mm256_srli_epi16(a.hi, N)};
}
template <int N>
static inline V left(V a) {
  return {_mm256_slli_epi16(a.lo, N), _mm256_slli_epi16(a.hi, N)};
}
static inline V either(V a, V b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
static inline V meet(V a, V b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
static inline Sums no_sums() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline Bytes no_bytes() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
// As an instruction of its own: GCC turns chains of the intrinsic into trees and spills what they hold.
static inline __m256i add16(__m256i a, __m256i b) {
  __asm__("vpaddw %1, %0, %0" : "+x"(a) : "x"(b));
  return a;
}
static inline __m256i add32(__m256i a, __m256i b) {
  __asm__("vpaddd %1, %0, %0" : "+x"(a) : "x"(b));
  return a;
}
static inline void dot_bytes(Bytes& sums, V codes, int32_t x) {
  const __m256i four = _mm256_set1_epi32(x);
  sums.lo = add16(sums.lo, _mm256_maddubs_epi16(codes.lo, four));
  sums.hi = add16(sums.hi, _mm256_maddubs_epi16(codes.hi, four));
}
static inline void dot_words(Sums& sums, V codes, int32_t x) {
  const __m256i two = _mm256_set1_epi32(x);
  sums.lo = add32(sums.lo, _mm256_madd_epi16(codes.lo, two));
  sums.hi = add32(sums.hi, _mm256_madd_epi16(codes.hi, two));
}
static inline void flush(Sums& sums, Bytes bytes) {
  const __m256i ones = _mm256_set1_epi16(1);
  sums.lo = _mm256_add_epi32(sums.lo, _mm256_madd_epi16(bytes.lo, ones));
  sums.hi = _mm256_add_epi32(sums.hi, _mm256_madd_epi16(bytes.hi, ones));
}
static inline Sums widen_zeros(const uint8_t* p) {
  const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(zeros), _mm256_cvtepu8_epi32(_mm_srli_si128(zeros, 8))};
}
static inline Sums times(Sums a, int32_t x) {
  const __m256i factor = _mm256_set1_epi32(x);
  return {_mm256_mullo_epi32(a.lo, factor), _mm256_mullo_epi32(a.hi, factor)};
}
template <int N>
static inline Sums left_sums(Sums a) {
  return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
}
static inline Sums plus(Sums a, Sums b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
static inline F to_float(Sums a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}

#else

// Unrolled copies of these loops would take minutes to compile and serve nobody.
#define BALLAST_APART static __attribute__((noinline))

struct V {
  uint8_t b[kVectorBytes];
};
struct Sums {
  int32_t v[kLanes];
};
using Bytes = Sums;
template <int BITS>
inline constexpr int64_t kFlushSteps = kMaxSteps;
template <int COLUMNS>
inline constexpr int kChains = 1;

static inline V load_codes64(const uint8_t* p) {
  V out;
  __builtin_memcpy(out.b, p, kVectorBytes);
  return out;
}
BALLAST_APART V widen32(const uint8_t* p) {
  V out = {};
  for (int i = 0; i < 32; ++i) out.b[2 * i] = p[i];
  return out;
}
BALLAST_APART V load_upper32(const uint8_t* p) {
  V out;
  for (int i = 0; i < 32; ++i) {
    out.b[i] = p[i];
    out.b[32 + i] = uint8_t(p[i] >> 4);
  }
  return out;
}
static inline void store_step(uint8_t* p, V a) {
  __builtin_memcpy(p, a.b, kVectorBytes);
}
static inline V load_step(const uint8_t* p) {
  return load_codes64(p);
}
#define BALLAST_EACH_BYTE(expression)                             \
  V out;                                                          \
  for (int i = 0; i < kVectorBytes; ++i) out.b[i] = (expression); \
  return out
BALLAST_APART V mask(V a, int bits) {
  BALLAST_EACH_BYTE(uint8_t(a.b[i] & bits));
}
template <int N>
BALLAST_APART V right(V a) {
  BALLAST_EACH_BYTE(uint8_t(a.b[i] >> N));
}
template <int N>
BALLAST_APART V left(V a) {
  BALLAST_EACH_BYTE(uint8_t(a.b[i] << N));
}
BALLAST_APART V either(V a, V b) {
  BALLAST_EACH_BYTE(uint8_t(a.b[i] | b.b[i]));
}
BALLAST_APART V meet(V a, V b) {
  BALLAST_EACH_BYTE(uint8_t(a.b[i] & b.b[i]));
}
#undef BALLAST_EACH_BYTE
static inline Sums no_sums() {
  return {};
}
static inline Bytes no_bytes() {
  return {};
}
BALLAST_APART void dot_bytes(Bytes& sums, V codes, int32_t x) {
  int8_t four[4];
  __builtin_memcpy(four, &x, sizeof four);
  for (int row = 0; row < kLanes; ++row)
    for (int j = 0; j < 4; ++j) sums.v[row] += codes.b[4 * row + j] * four[j];
}
BALLAST_APART void dot_words(Sums& sums, V codes, int32_t x) {
  int16_t two[2];
  __builtin_memcpy(two, &x, sizeof two);
  for (int row = 0; row < kLanes; ++row)
    for (int j = 0; j < 2; ++j) sums.v[row] += codes.b[4 * row + 2 * j] * two[j];
}
#define BALLAST_EACH_SUM(expression)                        \
  Sums out;                                                 \
  for (int i = 0; i < kLanes; ++i) out.v[i] = (expression); \
  return out
BALLAST_APART Sums plus(Sums a, Sums b) {
  BALLAST_EACH_SUM(a.v[i] + b.v[i]);
}
static inline void flush(Sums& sums, Bytes bytes) {
  sums = plus(sums, bytes);
}
static inline Sums widen_zeros(const uint8_t* p) {
  BALLAST_EACH_SUM(p[i]);
}
BALLAST_APART Sums times(Sums a, int32_t x) {
  BALLAST_EACH_SUM(a.v[i] * x);
}
template <int N>
BALLAST_APART Sums left_sums(Sums a) {
  BALLAST_EACH_SUM(a.v[i] * (1 << N));
}
#undef BALLAST_EACH_SUM
BALLAST_APART F to_float(Sums a) {
  F out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = float(a.v[i]);
  return out;
}

#undef BALLAST_APART
#endif

}  // namespace ballast::BALLAST_ISA
