// The f64 loops of the factorization, one instruction set (see simd.h). Every sum is one chain of fused
// multiply-adds in a fixed order, so every instruction set gives the same bits.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

// One register of doubles, and the block of the result that update_f64 keeps in registers.
#if defined(BALLAST_AVX512)
inline constexpr int kDoubles = 8, kBlockRows = 12;
#elif defined(BALLAST_AVX2)
inline constexpr int kDoubles = 4, kBlockRows = 6;
#else
inline constexpr int kDoubles = 2, kBlockRows = 4;
#endif
inline constexpr int kBlockVectors = 2, kStrip = kBlockVectors * kDoubles;
typedef double D __attribute__((vector_size(8 * kDoubles), aligned(8), may_alias));

// c − a·b
static inline D subtract_product(double a, D b, D c) {
#if defined(BALLAST_AVX512)
  return _mm512_fnmadd_pd(_mm512_set1_pd(a), b, c);
#elif defined(BALLAST_AVX2)
  return _mm256_fnmadd_pd(_mm256_set1_pd(a), b, c);
#else
  for (int i = 0; i < kDoubles; ++i) c[i] = __builtin_fma(-a, b[i], c[i]);
  return c;
#endif
}

// kBlockRows x kStrip elements of out, over `count` terms. a: [kBlockRows][kTermBlock], b: [count][kStrip].
static void update_block(const double* a, const double* b, int64_t count, bool fresh, double* out,
                         int64_t out_stride) {
  D sums[kBlockRows][kBlockVectors];
  for (int i = 0; i < kBlockRows; ++i)
    for (int v = 0; v < kBlockVectors; ++v)
      sums[i][v] = fresh ? D{} : *reinterpret_cast<const D*>(out + i * out_stride + v * kDoubles);
  for (int64_t r = 0; r < count; ++r) {
    D row[kBlockVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kBlockVectors; ++v)
      row[v] = *reinterpret_cast<const D*>(b + r * kStrip + v * kDoubles);
#pragma GCC unroll 12
    for (int i = 0; i < kBlockRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kBlockVectors; ++v)
        sums[i][v] = subtract_product(a[i * kTermBlock + r], row[v], sums[i][v]);
  }
  for (int i = 0; i < kBlockRows; ++i)
    for (int v = 0; v < kBlockVectors; ++v)
      *reinterpret_cast<D*>(out + i * out_stride + v * kDoubles) = sums[i][v];
}

// The same where only `rows` x `columns` elements of out are there.
static void update_edge(const double* a, const double* b, int64_t count, bool fresh, int64_t rows,
                        int64_t columns, double* out, int64_t out_stride) {
  double whole[kBlockRows * kStrip] = {};
  if (!fresh)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) whole[i * kStrip + j] = out[i * out_stride + j];
  update_block(a, b, count, fresh, whole, kStrip);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i * out_stride + j] = whole[i * kStrip + j];
}

// Terms [from, from + count) of kBlockRows rows of a, side by side in memory: rows of a large matrix lie a
// power of two apart and would push each other out of the cache.
static void gather_terms(const DoubleUpdate& task, int64_t row, int64_t rows, int64_t from, int64_t count,
                         double* out) {
  for (int64_t i = 0; i < kBlockRows; ++i, out += kTermBlock) {
    int64_t zeros = i < rows ? row + i + task.diagonal - from : count;
    zeros = zeros < 0 ? 0 : zeros < count ? zeros : count;
    for (int64_t r = 0; r < zeros; ++r) out[r] = 0;
    if (i >= rows) continue;
    const double* in = task.a + (row + i) * task.a_stride + from;
    for (int64_t r = zeros; r < count; ++r) out[r] = in[r];
  }
}

static void update_f64(const DoubleUpdate& task) {
  double a[kBlockRows * kTermBlock];
  for (int64_t row = 0; row < task.rows; row += kBlockRows) {
    const int64_t rows = task.rows - row < kBlockRows ? task.rows - row : kBlockRows;
    bool fresh = task.fresh;
    // Where a's triangle begins is a matter of the row alone, whatever rows are handled together: the terms
    // that a neighbour needs and this row does not are zero and change nothing.
    const int64_t first = row + task.diagonal > 0 ? row + task.diagonal : 0;
    for (int64_t from = first; from < task.rank || fresh; from += kTermBlock) {
      int64_t count = task.rank - from < kTermBlock ? task.rank - from : kTermBlock;
      count = count < 0 ? 0 : count;
      gather_terms(task, row, rows, from, count, a);
      for (int64_t column = 0; column < task.columns; column += kStrip) {
        const int64_t columns = task.columns - column < kStrip ? task.columns - column : kStrip;
        const double* b = task.b + column * task.rank + from * kStrip;
        double* out = task.out + row * task.out_stride + column;
        if (rows == kBlockRows && columns == kStrip) {
          update_block(a, b, count, fresh, out, task.out_stride);
        } else {
          update_edge(a, b, count, fresh, rows, columns, out, task.out_stride);
        }
      }
      fresh = false;
    }
  }
}

// Row `to` of kSquare columns, from the vector that holds column `from` on: to −= a · row.
static inline void subtract_row(double a, const double* row, int64_t from, double* to) {
  for (int64_t k = from / kDoubles * kDoubles; k < kSquare; k += kDoubles)
    *reinterpret_cast<D*>(to + k) =
        subtract_product(a, *reinterpret_cast<const D*>(row + k), *reinterpret_cast<const D*>(to + k));
}

// In place on the upper triangle of a square: H = R·Rᵀ with R upper triangular, from the last column to the
// first. What is below the diagonal is scratch.
static bool factor_square(double* h, int64_t size) {
  double column[kSquare];
  for (int64_t j = size - 1; j >= 0; --j) {
    const double pivot = h[j * kSquare + j];
    if (!(pivot > 0) || pivot > 1.7976931348623157e308) return false;
    const double root = __builtin_sqrt(pivot);
    for (int64_t k = 0; k < kSquare; ++k) column[k] = 0;
    for (int64_t i = 0; i < j; ++i) h[i * kSquare + j] = column[i] = h[i * kSquare + j] / root;
    h[j * kSquare + j] = root;
    for (int64_t i = 0; i < j; ++i) subtract_row(column[i], column, i, h + i * kSquare);
  }
  return true;
}

// inverse = R⁻¹ for the upper triangle of a square; zeros below the diagonal.
static void invert_square(const double* r, int64_t size, double* inverse) {
  for (int64_t i = size - 1; i >= 0; --i) {
    double* row = inverse + i * kSquare;
    for (int64_t k = 0; k < kSquare; ++k) row[k] = 0;
    for (int64_t k = i + 1; k < size; ++k) subtract_row(r[i * kSquare + k], inverse + k * kSquare, k, row);
    const double pivot = r[i * kSquare + i];
    for (int64_t k = i + 1; k < size; ++k) row[k] = row[k] / pivot;
    row[i] = 1 / pivot;
  }
}

}  // namespace ballast::BALLAST_ISA
