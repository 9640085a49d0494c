#include "quantize/scale_refit.h"

#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "quantize/scale_range.h"

namespace ballast {
namespace {

// A and b are sums of f32 products, good to about this share of their terms: a smaller gain may be none.
constexpr double kNoise = 0x1p-18;
constexpr int kRoundingPasses = 4;

// Change of the objective for a move by `delta`; `product` receives A·delta.
double change(std::span<const double> a, std::span<const double> b, std::span<const double> delta,
              std::span<double> product) {
  const size_t n = b.size();
  double value = 0;
  for (size_t i = 0; i < n; ++i) {
    product[i] = 0;
    for (size_t j = 0; j < n; ++j) product[i] += a[i * n + j] * delta[j];
    value += delta[i] * (product[i] - 2 * b[i]);
  }
  return value;
}

// δ = A⁻¹b by LDLᵀ; directions without curvature stay 0. `a` is a copy.
std::vector<double> joint_step(std::vector<double> a, std::span<const double> b) {
  const size_t n = b.size();
  std::vector<double> step(b.begin(), b.end());
  std::vector<uint8_t> flat(n);
  for (size_t k = 0; k < n; ++k) {
    double* row = a.data() + k * n;
    // What earlier groups explain leaves nothing but rounding noise: its share of the step is theirs.
    flat[k] = !(row[k] > 0);
    if (flat[k]) continue;
    for (size_t i = k + 1; i < n; ++i) {
      const double factor = row[i] / row[k];
      if (factor == 0) continue;
      for (size_t j = i; j < n; ++j) a[i * n + j] -= factor * row[j];
      step[i] -= factor * step[k];
    }
  }
  for (size_t k = n; k-- > 0;) {
    if (flat[k]) {
      step[k] = 0;
      continue;
    }
    for (size_t j = k + 1; j < n; ++j) step[k] -= a[k * n + j] * step[j];
    step[k] /= a[k * n + k];
  }
  return step;
}

}  // namespace

bool refit_scales(std::span<double> a, std::span<const double> b, bool half_zeros, std::span<float> scales) {
  const size_t n = b.size();
  CHECK(a.size() == n * n && scales.size() == n);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < i; ++j) a[i * n + j] = a[j * n + i];
  std::vector<double> damped(a.begin(), a.end());
  for (size_t i = 0; i < n; ++i) damped[i * n + i] *= 1 + kNoise;
  const std::vector<double> step = joint_step(std::move(damped), b);

  std::vector<double> delta(n), product(n);
  std::vector<float> moved(scales.begin(), scales.end());
  bool all_valid = true;
  for (size_t i = 0; i < n; ++i) {
    moved[i] = f16_to_f32(f32_to_f16(float(double(scales[i]) + step[i])));
    all_valid &= valid_scale(moved[i], half_zeros);
    delta[i] = double(moved[i]) - double(scales[i]);
  }
  bool changed = all_valid && change(a, b, delta, product) < 0;
  if (!changed) {
    moved.assign(scales.begin(), scales.end());
    delta.assign(n, 0.0);
    product.assign(n, 0.0);
  }
  // Rounding moved every scale off the joint minimum by itself: settle them one by one.
  for (int pass = 0; pass < kRoundingPasses; ++pass) {
    bool settled = true;
    for (size_t i = 0; i < n; ++i) {
      const double curvature = a[i * n + i], slope = b[i] - product[i];
      if (!(curvature > 0)) continue;
      const float candidate = f16_to_f32(f32_to_f16(float(double(moved[i]) + slope / curvature)));
      const double by = double(candidate) - double(moved[i]);
      const double gain = by * (2 * slope - by * curvature);
      if (by == 0 || !valid_scale(candidate, half_zeros) || !(gain > kNoise * by * by * curvature)) continue;
      for (size_t j = 0; j < n; ++j) product[j] += by * a[j * n + i];
      moved[i] = candidate;
      settled = false, changed = true;
    }
    if (settled) break;
  }
  std::copy(moved.begin(), moved.end(), scales.begin());
  return changed;
}

}  // namespace ballast
