// The f64 product inside the factorization, one instruction set (see simd.h). Products and differences are
// rounded separately, so every instruction set gives the same bits.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

typedef double D8 __attribute__((vector_size(64), aligned(8), may_alias));

template <int ROWS>
static inline void update_block(const double* a, int64_t a_stride, const double* b, int64_t b_stride,
                                int64_t rank, double* out, int64_t out_stride) {
  D8 sums[ROWS];
  for (int i = 0; i < ROWS; ++i) sums[i] = *reinterpret_cast<const D8*>(out + i * out_stride);
  for (int64_t r = 0; r < rank; ++r) {
    const D8 row = *reinterpret_cast<const D8*>(b + r * b_stride);
    for (int i = 0; i < ROWS; ++i) sums[i] -= a[i * a_stride + r] * row;
  }
  for (int i = 0; i < ROWS; ++i) *reinterpret_cast<D8*>(out + i * out_stride) = sums[i];
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
