#include "quantize/curvature.h"

#include <algorithm>

namespace ballast {
namespace {

constexpr int64_t kPanel = 256;        // rows of the matrix that are made f32 together
constexpr int64_t kRowsAtOnce = 1024;  // of A: bounds the memory for products
constexpr int64_t kMirrorSquare = 32;  // reading down a whole column would miss the cache every time

}  // namespace

Curvature activation_curvature(Statistics&& statistics, bool centred) {
  CHECK(!statistics.moment.empty() && statistics.count > 0);
  const int64_t n = statistics.features;
  Curvature curvature{n, std::move(statistics.moment), std::vector<uint8_t>(size_t(n)), {}};
  const double scale = 1 / double(statistics.count);
  for (double& value : curvature.h) value *= scale;
  for (int64_t i = 0; i < n; ++i) curvature.dead[size_t(i)] = curvature.h[size_t(i * n + i)] == 0;
  if (!centred) return curvature;
  curvature.mean = statistics.mean();
  const std::vector<double>& mean = curvature.mean;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) curvature.h[size_t(i * n + j)] -= mean[size_t(i)] * mean[size_t(j)];
  return curvature;
}

// Twice the part below the diagonal plus the diagonal stands for the whole: half the products.
double quadratic_form(Backend& backend, const SymmetricView& matrix, std::span<const float> a,
                      std::span<const int32_t> order) {
  const int64_t n = matrix.size, all_rows = int64_t(a.size()) / n;
  CHECK(int64_t(a.size()) == all_rows * n);
  std::vector<float> panel(size_t(std::min(kPanel, n) * n));
  std::vector<float> product(size_t(std::min(kRowsAtOnce, all_rows) * n));
  std::vector<float> ordered(order.empty() ? 0 : product.size());
  double sum = 0;
  for (int64_t row = 0; row < all_rows; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, all_rows - row);
    const float* part = a.data() + row * n;
    if (!order.empty()) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) ordered[size_t(r * n + i)] = part[r * n + order[size_t(i)]];
      part = ordered.data();
    }
    std::fill(product.begin(), product.end(), 0.0f);
    for (int64_t first = 0; first < n; first += kPanel) {
      const int64_t count = std::min(kPanel, n - first), columns = first + count;
      backend.parallel_for(count, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          float* out = panel.data() + k * columns;
          const double* in = matrix.below + (first + k) * n;
          for (int64_t j = 0; j < first + k; ++j) out[j] = float(2 * in[j]);
          out[first + k] = float(matrix.diagonal[(first + k) * matrix.diagonal_stride]);
          std::fill(out + first + k + 1, out + columns, 0.0f);
        }
      });
      TensorView e(part + first, DType::f32, {rows, count});
      OutputView w(product.data(), DType::f32, {rows, columns});
      e.strides[0] = w.strides[0] = n;
      backend.run(RankUpdate{.e = e, .u = {panel.data(), DType::f32, {count, columns}}, .w = w});
    }
    for (int64_t i = 0; i < rows * n; ++i) sum -= double(product[size_t(i)]) * double(part[i]);
  }
  return sum;
}

double squared_norm(Backend& backend, std::span<const float> a, const std::vector<double>& v) {
  const int64_t n = int64_t(v.size()), rows = int64_t(a.size()) / n;
  std::vector<double> products(static_cast<size_t>(rows));
  backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += double(a[size_t(row * n + i)]) * v[size_t(i)];
      products[size_t(row)] = sum;
    }
  });
  double norm = 0;
  for (const double value : products) norm += value * value;
  return norm;
}

void permute_both(Backend& backend, std::vector<double>& matrix, std::span<const int32_t> order) {
  const int64_t n = int64_t(order.size());
  CHECK(int64_t(matrix.size()) == n * n);
  const auto row = [&](int64_t i) { return matrix.begin() + i * n; };
  std::vector<double> first(static_cast<size_t>(n));
  std::vector<uint8_t> done(static_cast<size_t>(n));
  for (int64_t start = 0; start < n; ++start) {  // rows move along the cycles of the permutation
    if (done[size_t(start)]) continue;
    std::copy_n(row(start), n, first.begin());
    int64_t at = start;
    for (; order[size_t(at)] != start; at = order[size_t(at)]) {
      std::copy_n(row(order[size_t(at)]), n, row(at));
      done[size_t(at)] = 1;
    }
    std::copy_n(first.begin(), n, row(at));
    done[size_t(at)] = 1;
  }
  backend.parallel_for(n, [&](int64_t begin, int64_t end) {
    std::vector<double> copy(static_cast<size_t>(n));
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(row(i), n, copy.begin());
      for (int64_t j = 0; j < n; ++j) row(i)[j] = copy[size_t(order[size_t(j)])];
    }
  });
}

void mirror_below(Backend& backend, std::vector<double>& matrix, int64_t size) {
  double* const m = matrix.data();
  backend.parallel_for((size + kMirrorSquare - 1) / kMirrorSquare, [&](int64_t begin, int64_t end) {
    for (int64_t i0 = begin * kMirrorSquare; i0 < std::min(size, end * kMirrorSquare); i0 += kMirrorSquare)
      for (int64_t j0 = i0; j0 < size; j0 += kMirrorSquare)
        for (int64_t i = i0; i < std::min(size, i0 + kMirrorSquare); ++i)
          for (int64_t j = std::max(i + 1, j0); j < std::min(size, j0 + kMirrorSquare); ++j)
            m[i * size + j] = m[j * size + i];
  });
}

std::vector<float> weight_error(Backend& backend, std::span<const float> target,
                                const QuantizedMatrix& quantized) {
  const int64_t in = in_features(quantized);
  std::vector<float> error(target.size());
  backend.parallel_for(out_features(quantized), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* d = error.data() + row * in;
      decode_row(quantized, row, d);
      for (int64_t i = 0; i < in; ++i) d[i] = target[size_t(row * in + i)] - d[i];
    }
  });
  return error;
}

}  // namespace ballast
