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

void ColumnRounder::walk(Backend& backend, const ColumnBlock& block) {
  const int64_t n = block.factor.size;
  backend.parallel_for(block.work.shape[0], [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* w = block.work.row(row);
      for (int64_t i = block.start; i < block.stop; ++i) {
        if (block.dynamic_groups && i % block.group_size == 0)
          start_group(row, i / block.group_size, {w + i, size_t(std::min(block.group_size, n - i))});
        const float* u = block.u.row(i - block.start) - block.start;
        w[i] = (w[i] - round(row, block.factor.order[size_t(i)], w[i])) / u[i];
        for (int64_t j = i + 1; j < block.stop; ++j) w[j] -= w[i] * u[j];
      }
    }
  });
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
  for (int64_t start = 0; start < n;) {
    // Blocks end where groups begin, so that a group's grid sees every error fed back so far.
    int64_t stop = std::min(n, start + kBlockColumns);
    if (problem.dynamic_groups && problem.group_size > kBlockColumns)
      stop = std::min(stop, (start / problem.group_size + 1) * problem.group_size);
    else if (problem.dynamic_groups && stop < n)
      stop -= stop % problem.group_size;
    const int64_t width = stop - start;
    TensorView u(factor.u.data() + start * n + start, DType::f32, {width, n - start});
    u.strides[0] = n;
    const ColumnBlock block{.start = start,
                            .stop = stop,
                            .work = {work.data(), DType::f32, {rows, n}},
                            .u = u,
                            .factor = factor,
                            .group_size = problem.group_size,
                            .dynamic_groups = problem.dynamic_groups};
    rounder.walk(backend, block);
    if (stop < n) {
      const auto columns = [&](float* data, int64_t first, int64_t last) {
        OutputView view(data + first, DType::f32, {rows, last - first});
        view.strides[0] = n;
        return view;
      };
      TensorView ahead(u.as<float>() + width, DType::f32, {width, n - stop});
      ahead.strides[0] = n;
      backend.run(
          RankUpdate{.e = columns(work.data(), start, stop), .u = ahead, .w = columns(work.data(), stop, n)});
    }
    start = stop;
  }
}

}  // namespace ballast
