#include "kernels/ops/factorize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

constexpr int64_t kBlock = 64;

// In place on the block [first, last)²: H = R·Rᵀ with R upper triangular, from the last column to the first.
bool factor_diagonal(double* h, int64_t size, int64_t first, int64_t last) {
  for (int64_t j = last - 1; j >= first; --j) {
    double pivot = h[j * size + j];
    for (int64_t k = j + 1; k < last; ++k) pivot -= h[j * size + k] * h[j * size + k];
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    h[j * size + j] = root;
    for (int64_t i = first; i < j; ++i) {
      double value = h[i * size + j];
      for (int64_t k = j + 1; k < last; ++k) value -= h[i * size + k] * h[j * size + k];
      h[i * size + j] = value / root;
    }
  }
  return true;
}

}  // namespace

// Left-looking over column blocks from the right: block column J first loses the products of the columns
// right of it, then is factored. The inverse U = R⁻¹ follows by block columns from the left: U[:, J] = −U[:,
// <J]·R[<J, J]·R[J, J]⁻¹.
bool CpuBackend::run(const FactorizeInverse& op) {
  op.check();
  const int64_t n = op.size;
  double* h = op.h;
  std::vector<double> transposed;
  for (int64_t last = n; last > 0;) {
    const int64_t first = std::max<int64_t>(0, last - kBlock), width = last - first, right = n - last;
    // Rᵀ of rows [first, last), columns right of the block: [right][width].
    transposed.resize(size_t(right * width));
    for (int64_t k = 0; k < right; ++k)
      for (int64_t j = 0; j < width; ++j) transposed[size_t(k * width + j)] = h[(first + j) * n + last + k];
    pool_.parallel(last, [&](int, int64_t begin, int64_t end) {
      kernels_.update_f64(h + begin * n + last, n, transposed.data(), width, right, end - begin, width,
                          h + begin * n + first, n);
    });
    if (!factor_diagonal(h, n, first, last)) return false;
    pool_.parallel(first, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = last - 1; j >= first; --j) {
          double value = h[i * n + j];
          for (int64_t k = j + 1; k < last; ++k) value -= h[i * n + k] * h[j * n + k];
          h[i * n + j] = value / h[j * n + j];
        }
    });
    last = first;
  }
  for (int64_t i = 0; i < n; ++i) std::fill(h + i * n, h + i * n + i, 0.0);

  std::vector<double> column, inverse;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock), width = last - first;
    // Inverse of the diagonal block.
    inverse.assign(size_t(width * width), 0.0);
    for (int64_t j = 0; j < width; ++j) {
      inverse[size_t(j * width + j)] = 1 / h[(first + j) * n + first + j];
      for (int64_t i = j - 1; i >= 0; --i) {
        double value = 0;
        for (int64_t k = i + 1; k <= j; ++k)
          value -= h[(first + i) * n + first + k] * inverse[size_t(k * width + j)];
        inverse[size_t(i * width + j)] = value / h[(first + i) * n + first + i];
      }
    }
    // R[<J, J]·R[J, J]⁻¹, negated by update_f64; then U[<J, <J] times it.
    column.assign(size_t(first * width), 0.0);
    pool_.parallel(first, [&](int, int64_t begin, int64_t end) {
      kernels_.update_f64(h + begin * n + first, n, inverse.data(), width, width, end - begin, width,
                          column.data() + begin * width, width);
    });
    for (double& value : column) value = -value;
    pool_.parallel(first, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::fill(h + i * n + first, h + i * n + last, 0.0);
      kernels_.update_f64(h + begin * n, n, column.data(), width, first, end - begin, width,
                          h + begin * n + first, n);
    });
    for (int64_t i = 0; i < width; ++i)
      for (int64_t j = 0; j < width; ++j) h[(first + i) * n + first + j] = inverse[size_t(i * width + j)];
  }
  return true;
}

}  // namespace ballast
