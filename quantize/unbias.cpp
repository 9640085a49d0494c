#include "quantize/unbias.h"

#include <algorithm>
#include <cmath>

#include "quantize/scale_range.h"

namespace ballast {
namespace {

constexpr double kLargestGain = 2;

}  // namespace

std::vector<float> output_gains(Backend& backend, std::span<const float> weight, const Curvature& curvature,
                                double damping, const DecodeRow& decode) {
  const int64_t n = curvature.size, rows = int64_t(weight.size()) / n;
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
      decode(row, q.data());
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

void unbias(Backend& backend, std::span<const float> weight, const Curvature& curvature, double damping,
            AffineMatrix& matrix) {
  const std::vector<float> gains = output_gains(backend, weight, curvature, damping, matrix);
  for (int64_t row = 0; row < matrix.out_features; ++row) {
    const std::span scales(matrix.scales.data() + row * matrix.groups(), size_t(matrix.groups()));
    const auto normal = [&](uint16_t scale) {
      return valid_scale(gains[size_t(row)] * f16_to_f32(scale), matrix.half_zeros);
    };
    if (std::all_of(scales.begin(), scales.end(), normal))
      for (uint16_t& scale : scales) scale = f32_to_f16(gains[size_t(row)] * f16_to_f32(scale));
  }
}

void unbias(Backend& backend, std::span<const float> weight, const Curvature& curvature, double damping,
            ResidualBinaryMatrix& matrix) {
  const std::vector<float> gains = output_gains(backend, weight, curvature, damping, matrix);
  const int64_t count = matrix.blocks() * ResidualBinaryMatrix::kCoefficients;
  for (int64_t row = 0; row < matrix.out_features; ++row) {
    const std::span coefficients(matrix.coefficients.data() + row * count, size_t(count));
    const auto fits = [&](uint16_t value) {
      return std::fabs(gains[size_t(row)] * f16_to_f32(value)) <= kLargestScale;
    };
    if (std::all_of(coefficients.begin(), coefficients.end(), fits))
      for (uint16_t& value : coefficients) value = f32_to_f16(gains[size_t(row)] * f16_to_f32(value));
  }
}

}  // namespace ballast
