#include "quantize/unbias.h"

namespace ballast {
namespace {

constexpr float kSmallestScale = 0x1p-14f;  // smallest normal binary16
constexpr float kLargestScale = 65504.0f;
constexpr double kLargestGain = 2;

}  // namespace

std::vector<float> output_gains(Backend& backend, std::span<const float> weight, const Curvature& curvature,
                                double damping, const AffineMatrix& matrix) {
  const int64_t rows = matrix.out_features, n = matrix.in_features;
  CHECK(int64_t(weight.size()) == rows * n && curvature.size == n);
  std::vector<float> h(curvature.h.begin(), curvature.h.end());
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += curvature.h[size_t(i * n + i)] / double(n);
  for (int64_t i = 0; i < n; ++i)
    if (!curvature.dead[size_t(i)]) h[size_t(i * n + i)] += float(damping * mean);
  std::vector<float> product(size_t(rows * n));  // −w·H
  backend.run(RankUpdate{.e = {weight.data(), DType::f32, {rows, n}},
                         .u = {h.data(), DType::f32, {n, n}},
                         .w = {product.data(), DType::f32, {rows, n}}});
  std::vector<float> gains(size_t(rows), 1.0f);
  backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
    std::vector<float> q(static_cast<size_t>(n));
    for (int64_t row = begin; row < end; ++row) {
      matrix.decode_row(row, q.data());
      double own = 0, shared = 0;
      for (int64_t j = 0; j < n; ++j) {
        own -= double(product[size_t(row * n + j)]) * double(weight[size_t(row * n + j)]);
        shared -= double(product[size_t(row * n + j)]) * double(q[size_t(j)]);
      }
      if (own > 0 && shared > own / kLargestGain && shared < own * kLargestGain)
        gains[size_t(row)] = float(own / shared);
    }
  });
  return gains;
}

void unbias_scales(Backend& backend, std::span<const float> weight, const Curvature& curvature,
                   double damping, AffineMatrix& matrix) {
  const std::vector<float> gains = output_gains(backend, weight, curvature, damping, matrix);
  backend.parallel_for(matrix.out_features, [&](int64_t begin, int64_t end) {
    std::vector<uint16_t> moved(static_cast<size_t>(matrix.groups()));
    for (int64_t row = begin; row < end; ++row) {
      bool valid = true;
      for (int64_t g = 0; g < matrix.groups(); ++g) {
        const float scale = gains[size_t(row)] * matrix.scale(row, g);
        valid &= scale >= kSmallestScale && scale <= kLargestScale;
        moved[size_t(g)] = f32_to_f16(scale);
      }
      if (valid) std::copy(moved.begin(), moved.end(), matrix.scales.begin() + row * matrix.groups());
    }
  });
}

}  // namespace ballast
