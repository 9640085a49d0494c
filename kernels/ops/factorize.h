// U upper triangular with H⁻¹ = Uᵀ·U, for a symmetric positive definite H.
//
// GPTQ (arXiv 2210.17323, §3.3, step 3) takes the Cholesky factor of H⁻¹. With H = R·Rᵀ, R upper triangular
// (a Cholesky factorization that starts at the last row), U = R⁻¹: one factorization and one triangular
// inverse instead of two factorizations and a full inverse.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct FactorizeInverse {
  /// f64 [size, size], row-major. Only the diagonal and what is above it are read and written: on success
  /// they hold U, else nothing defined.
  double* h;
  int64_t size;

  void check() const { CHECK(h != nullptr && size > 0); }
};

}  // namespace ballast
