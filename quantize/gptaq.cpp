#include "quantize/gptaq.h"

#include <algorithm>

namespace ballast {
namespace {

constexpr int64_t kBlockColumns = 128;

// rows · (I − P)⁻¹ in place: r_j += r_i·P_ij for all i < j. `triangular`: row r is zero up to column r.
void times_inverse_of_one_minus(Backend& backend, const std::vector<float>& p, std::vector<float>& rows, int64_t n,
                                bool triangular) {
  const int64_t all = int64_t(rows.size()) / n;
  for (int64_t start = 0; start < n; start += kBlockColumns) {
    const int64_t stop = std::min(n, start + kBlockColumns), count = triangular ? std::min(all, stop) : all;
    backend.parallel_for(count, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* const r = rows.data() + row * n;
        for (int64_t i = start; i < stop; ++i)
          for (int64_t j = i + 1; j < stop; ++j) r[j] += r[i] * p[size_t(i * n + j)];
      }
    });
    if (stop == n) break;
    TensorView e(rows.data() + start, DType::f32, {count, stop - start});
    TensorView u(p.data() + start * n + stop, DType::f32, {stop - start, n - stop});
    OutputView w(rows.data() + stop, DType::f32, {count, n - stop});
    e.strides[0] = u.strides[0] = w.strides[0] = n;
    backend.run(RankUpdate{.e = e, .u = u, .w = w, .add = true});
  }
}

std::vector<float> coupling(Backend& backend, const DriftMoments& drift, const InverseFactor& factor, double alpha) {
  const int64_t n = factor.size;
  CHECK(int64_t(drift.input.size()) == n * n);
  std::vector<float> ordered(drift.input.size());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      ordered[size_t(i * n + j)] =
          float(alpha) * drift.input[size_t(int64_t(factor.order[size_t(i)]) * n + factor.order[size_t(j)])];
  return times_inverse(backend, ordered, factor, true);
}

InverseFactor coupled(Backend& backend, const InverseFactor& factor, const std::vector<float>& p) {
  const int64_t n = factor.size;
  std::vector<float> u(size_t(n * n)), panel;
  for (int64_t i = 0; i < n; ++i) {
    panel.resize(size_t(n - i));
    factor.rows(i, 1, panel.data());
    std::copy(panel.begin() + 1, panel.end(), u.begin() + i * n + i + 1);
  }
  times_inverse_of_one_minus(backend, p, u, n, true);
  for (int64_t i = 0; i < n; ++i) u[size_t(i * n + i)] = float(factor.diagonal(i));
  return factor.with(std::move(u));
}

}  // namespace

DriftFeedback::DriftFeedback(Backend& backend, const DriftMoments& drift, const InverseFactor& factor, double alpha)
    : p_(coupling(backend, drift, factor, alpha)), factor_(coupled(backend, factor, p_)) {}

std::vector<float> DriftFeedback::target(Backend& backend, std::span<const float> weight) const {
  const int64_t n = factor_.size, rows = int64_t(weight.size()) / n;
  std::vector<float> out(weight.size()), ordered(weight.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i)
      ordered[size_t(r * n + i)] = weight[size_t(r * n + factor_.order[size_t(i)])];
  times_inverse_of_one_minus(backend, p_, ordered, n, false);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i)
      out[size_t(r * n + factor_.order[size_t(i)])] = ordered[size_t(r * n + i)];
  return out;
}

}  // namespace ballast
