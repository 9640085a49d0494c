#include "quantize/target.h"

#include <algorithm>

namespace ballast {
namespace {

// rows · matrix for f32 [count, size] and [size, size].
std::vector<float> product(Backend& backend, std::span<const float> rows, std::span<const float> matrix,
                           int64_t size) {
  const int64_t count = int64_t(rows.size()) / size;
  std::vector<float> out(rows.size());
  backend.run(RankUpdate{.e = {rows.data(), DType::f32, {count, size}},
                         .u = {matrix.data(), DType::f32, {size, size}},
                         .w = {out.data(), DType::f32, {count, size}}});
  for (float& value : out) value = -value;
  return out;
}

}  // namespace

// rows · Uᵀ · U: some rows of U at a time, and of those only what is not zero.
std::vector<float> times_inverse(Backend& backend, std::span<const float> rows, const InverseFactor& factor,
                                 bool ahead) {
  constexpr int64_t kPanel = 128;
  const int64_t n = factor.size, count = int64_t(rows.size()) / n;
  std::vector<float> out(rows.size()), panel(size_t(kPanel * n)), transposed(size_t(kPanel * n));
  std::vector<float> part(size_t(count * kPanel));
  for (int64_t first = 0; first < n; first += kPanel) {
    const int64_t width = std::min(kPanel, n - first), right = n - first;
    factor.rows(first, width, panel.data());
    for (int64_t i = 0; i < width; ++i)
      for (int64_t j = 0; j < right; ++j) transposed[size_t(j * width + i)] = panel[size_t(i * right + j)];
    TensorView from(rows.data() + first, DType::f32, {count, right});
    OutputView to(out.data() + first, DType::f32, {count, right});
    from.strides[0] = to.strides[0] = n;
    const OutputView products(part.data(), DType::f32, {count, width});
    std::fill(part.begin(), part.end(), 0.0f);
    backend.run(RankUpdate{
        .e = from, .u = {transposed.data(), DType::f32, {right, width}}, .w = products, .add = true});
    // Row j of U reaches from column j on: without those up to i, the inverse is that of H's part behind i.
    for (int64_t i = first; ahead && i < count; ++i)
      std::fill_n(part.begin() + i * width, std::min(width, i - first + 1), 0.0f);
    backend.run(
        RankUpdate{.e = products, .u = {panel.data(), DType::f32, {width, right}}, .w = to, .add = true});
  }
  return out;
}

DriftMoments drift_moments(const InputMoments& moments, bool centred) {
  const int64_t n = moments.quantized.features;
  CHECK(int64_t(moments.cross.size()) == n * n && moments.has_reference());
  const double scale = 1 / double(moments.quantized.count);
  const std::vector<double> mean = moments.quantized.mean(), float_mean = moments.reference.mean();
  DriftMoments drift{std::vector<float>(size_t(n * n)), std::vector<float>(moments.residual_cross.size())};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const size_t at = size_t(i * n + j);
      double value = (moments.cross[at] - moments.quantized.moment[at]) * scale;
      if (centred) value -= (float_mean[size_t(i)] - mean[size_t(i)]) * mean[size_t(j)];
      drift.input[at] = float(value);
    }
  for (size_t at = 0; at < drift.residual.size(); ++at) {
    double value = moments.residual_cross[at] * scale;
    if (centred) value -= moments.residual_sum[at / size_t(n)] * scale * mean[at % size_t(n)];
    drift.residual[at] = float(value);
  }
  return drift;
}

std::vector<float> asymmetric_target(Backend& backend, std::span<const float> weight,
                                     const DriftMoments& drift, const InverseFactor& factor) {
  const int64_t n = factor.size, rows = int64_t(weight.size()) / n;
  std::vector<float> correlated = product(backend, weight, drift.input, n);
  if (!drift.residual.empty()) {
    CHECK(drift.residual.size() == correlated.size());
    for (size_t i = 0; i < correlated.size(); ++i) correlated[i] += drift.residual[i];
  }
  std::vector<float> ordered(correlated.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i)
      ordered[size_t(r * n + i)] = correlated[size_t(r * n + factor.order[size_t(i)])];
  correlated = {};
  const std::vector<float> shift = times_inverse(backend, ordered, factor);
  std::vector<float> target(weight.begin(), weight.end());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t column = factor.order[size_t(i)];
    if (factor.dead[size_t(column)]) continue;
    for (int64_t r = 0; r < rows; ++r) target[size_t(r * n + column)] += shift[size_t(r * n + i)];
  }
  return target;
}

}  // namespace ballast
