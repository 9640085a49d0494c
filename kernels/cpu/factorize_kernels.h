// The f64 product inside the factorization, one instruction set (see simd.h). Products and differences are
// rounded separately, so every instruction set gives the same bits.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

// One register of doubles; eight columns are a fixed number of them. (One 64-byte vector type for all would
// do, but compilers keep it in memory where registers are narrower.)
#if defined(BALLAST_AVX512)
inline constexpr int kDoubleBytes = 64;
#elif defined(BALLAST_AVX2)
inline constexpr int kDoubleBytes = 32;
#else
inline constexpr int kDoubleBytes = 16;
#endif
inline constexpr int kVectors = 64 / kDoubleBytes;
inline constexpr int kDoubles = kDoubleBytes / 8;
typedef double D __attribute__((vector_size(kDoubleBytes), aligned(8), may_alias));

// ROWS x 8 elements of out in registers.
template <int ROWS>
static inline void update_block(const double* a, int64_t a_stride, const double* b, int64_t b_stride,
                                int64_t rank, double* out, int64_t out_stride) {
  D sums[ROWS][kVectors];
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < kVectors; ++v)
      sums[i][v] = *reinterpret_cast<const D*>(out + i * out_stride + v * kDoubles);
  for (int64_t r = 0; r < rank; ++r) {
    D row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = *reinterpret_cast<const D*>(b + r * b_stride + v * kDoubles);
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < kVectors; ++v) sums[i][v] -= a[i * a_stride + r] * row[v];
  }
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<D*>(out + i * out_stride + v * kDoubles) = sums[i][v];
}

static void update_f64(const double* a, int64_t a_stride, const double* b, int64_t b_stride, int64_t rank,
                       int64_t rows, int64_t columns, double* out, int64_t out_stride) {
  int64_t j = 0;
  for (; j + 8 <= columns; j += 8) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4)
      update_block<4>(a + i * a_stride, a_stride, b + j, b_stride, rank, out + i * out_stride + j,
                      out_stride);
    for (; i < rows; ++i)
      update_block<1>(a + i * a_stride, a_stride, b + j, b_stride, rank, out + i * out_stride + j,
                      out_stride);
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t tail = j; tail < columns; ++tail)
      for (int64_t r = 0; r < rank; ++r)
        out[i * out_stride + tail] -= a[i * a_stride + r] * b[r * b_stride + tail];
}

}  // namespace ballast::BALLAST_ISA
