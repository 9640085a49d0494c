#include "quantize/column_solver.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ballast {
namespace {

constexpr int64_t kBlockColumns = 128;
constexpr double kLargestDamping = 10;

bool natural(const std::vector<int32_t>& order) {
  for (size_t i = 0; i < order.size(); ++i)
    if (order[i] != int32_t(i)) return false;
  return true;
}

}  // namespace

InverseFactor factorize(Backend& backend, const Curvature& curvature, const FactorOptions& options,
                        const std::string& layer) {
  const int64_t n = curvature.size;
  const std::vector<double>& h = curvature.h;
  InverseFactor factor;
  factor.size = n;
  factor.dead = curvature.dead;
  double trace = 0;
  std::vector<double> diagonal(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const double value = h[size_t(i * n + i)];
    if (!std::isfinite(value))
      throw Error(
          str(layer, ": the second moment of input ", i, " is not finite; the model's activations overflow"));
    diagonal[size_t(i)] = factor.dead[size_t(i)] ? 1 : std::max(value, 0.0);
    trace += diagonal[size_t(i)];
  }
  factor.order.resize(size_t(n));
  std::iota(factor.order.begin(), factor.order.end(), 0);
  if (options.act_order)
    std::stable_sort(factor.order.begin(), factor.order.end(),
                     [&](int32_t a, int32_t b) { return diagonal[size_t(a)] > diagonal[size_t(b)]; });

  std::vector<double> u(static_cast<size_t>(n * n));
  for (factor.damping = options.damping;; factor.damping *= 10) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = factor.order[size_t(i)];
      for (int64_t j = 0; j < n; ++j) u[size_t(i * n + j)] = h[size_t(row * n + factor.order[size_t(j)])];
      u[size_t(i * n + i)] = diagonal[size_t(row)] + factor.damping * trace / double(n);
    }
    if (backend.run(FactorizeInverse{.h = u.data(), .size = n})) break;
    if (factor.damping >= kLargestDamping)
      throw Error(str(layer, ": the second moment of its inputs is not positive definite even with damping ",
                      factor.damping, "; use more or other calibration text"));
  }
  factor.u.assign(u.begin(), u.end());
  return factor;
}

void solve_columns(Backend& backend, const InverseFactor& factor, ColumnProblem problem,
                   ColumnRounder& rounder) {
  const int64_t n = factor.size, rows = problem.rows;
  CHECK(int64_t(problem.weight.size()) == rows * n);
  CHECK(!problem.dynamic_groups || natural(factor.order), "dynamic groups need the natural column order");
  std::vector<float> work(static_cast<size_t>(rows * n));
  backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t column = factor.order[size_t(i)];
        // A weight that only ever meets zeros is free: 0 costs nothing and leaves no error to feed back.
        work[size_t(row * n + i)] =
            factor.dead[size_t(column)] ? 0.0f : problem.weight[size_t(row * n + column)];
      }
  });
  problem.weight = {};
  std::vector<float> errors(static_cast<size_t>(rows * kBlockColumns));
  for (int64_t start = 0; start < n;) {
    // Blocks end where groups begin, so that a group's grid sees every error fed back so far.
    int64_t stop = std::min(n, start + kBlockColumns);
    if (problem.dynamic_groups && problem.group_size > kBlockColumns)
      stop = std::min(stop, (start / problem.group_size + 1) * problem.group_size);
    else if (problem.dynamic_groups && stop < n)
      stop -= stop % problem.group_size;
    const int64_t width = stop - start;
    backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* w = work.data() + row * n;
        for (int64_t i = start; i < stop; ++i) {
          if (problem.dynamic_groups && i % problem.group_size == 0)
            rounder.start_group(row, i / problem.group_size,
                                {w + i, size_t(std::min(problem.group_size, n - i))});
          const float* u = factor.u.data() + i * n;
          const float error = (w[i] - rounder.round(row, factor.order[size_t(i)], w[i])) / u[i];
          for (int64_t j = i + 1; j < stop; ++j) w[j] -= error * u[j];
          errors[size_t(row * width + i - start)] = error;
        }
      }
    });
    if (stop < n) {
      OutputView rest(work.data() + stop, DType::f32, {rows, n - stop});
      rest.strides[0] = n;
      TensorView u(factor.u.data() + start * n + stop, DType::f32, {width, n - stop});
      u.strides[0] = n;
      backend.run(RankUpdate{.e = {errors.data(), DType::f32, {rows, width}}, .u = u, .w = rest});
    }
    start = stop;
  }
}

}  // namespace ballast
