// The squares on the factorization's diagonal, one instruction set (see simd.h).
#pragma once

#include "kernels/cpu/update_kernels.h"

namespace ballast::BALLAST_ISA {

// Row `to` of kSquare columns, from the vector that holds column `from` on: to −= a · row.
static inline void subtract_row(double a, const double* row, int64_t from, double* to) {
  for (int64_t k = from / kVectorLanes<double> * kVectorLanes<double>; k < kSquare; k += kVectorLanes<double>)
    *reinterpret_cast<D*>(to + k) =
        plus_product(-a, *reinterpret_cast<const D*>(row + k), *reinterpret_cast<const D*>(to + k));
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
