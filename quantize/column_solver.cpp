#include "quantize/column_solver.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ballast {
namespace {

constexpr int64_t kBlockColumns = 128;
// Columns behind these wait for all their errors together: the weights cross memory that much less often.
constexpr int64_t kOuterColumns = 512;
constexpr double kLargestDamping = 10;

bool natural(const std::vector<int32_t>& order) {
  for (size_t i = 0; i < order.size(); ++i)
    if (order[i] != int32_t(i)) return false;
  return true;
}

// diag H with 1 for dead columns. Error when an element is not finite.
std::vector<double> checked_diagonal(const Curvature& curvature, const std::string& layer) {
  std::vector<double> diagonal(static_cast<size_t>(curvature.size));
  for (int64_t i = 0; i < curvature.size; ++i) {
    const double value = curvature.h[size_t(i * curvature.size + i)];
    if (!std::isfinite(value))
      throw Error(
          str(layer, ": the second moment of input ", i, " is not finite; the model's activations overflow"));
    diagonal[size_t(i)] = curvature.dead[size_t(i)] ? 1 : std::max(value, 0.0);
  }
  return diagonal;
}

// Puts the weights' columns into solver order.
void reorder(Backend& backend, const InverseFactor& factor, std::vector<float>& weight) {
  const int64_t n = factor.size;
  const bool in_order = natural(factor.order);
  backend.parallel_for(int64_t(weight.size()) / n, [&](int64_t begin, int64_t end) {
    std::vector<float> copy(static_cast<size_t>(n));
    for (int64_t row = begin; row < end; ++row) {
      float* const w = weight.data() + row * n;
      if (!in_order) {
        std::copy_n(w, n, copy.data());
        for (int64_t i = 0; i < n; ++i) w[i] = copy[size_t(factor.order[size_t(i)])];
      }
      // A weight that only ever meets zeros is free: 0 costs nothing and leaves no error to feed back.
      for (int64_t i = 0; i < n; ++i)
        if (factor.dead[size_t(factor.order[size_t(i)])]) w[i] = 0;
    }
  });
}

// Where a block of up to `width` columns ends: where a group begins, so that a group's grid sees every error fed
// back so far.
int64_t end_of_block(const ColumnProblem& problem, int64_t start, int64_t size, int64_t width) {
  const int64_t stop = std::min(size, start + width);
  if (!problem.dynamic_groups) return stop;
  if (problem.group_size > width)
    return std::min(stop, (start / problem.group_size + 1) * problem.group_size);
  return stop < size ? stop - stop % problem.group_size : stop;
}

}  // namespace

void InverseFactor::row(int64_t i, int64_t first, float* out) const {
  const size_t at = size_t(i * size);
  for (int64_t j = first; j < i; ++j) *out++ = 0;
  for (int64_t j = std::max(i, first); j < size; ++j)
    *out++ = u_.empty() ? float(shared_[at + size_t(j)]) : u_[at + size_t(j)];
}

InverseFactor InverseFactor::with(std::vector<float> u) const {
  CHECK(int64_t(u.size()) == size * size);
  InverseFactor other;
  other.size = size, other.order = order, other.dead = dead, other.damping = damping;
  other.u_ = std::move(u);
  return other;
}

void InverseFactor::give_back(Backend& backend, Curvature& curvature) {
  CHECK(holds_curvature_);
  u_.resize(shared_.size());
  backend.parallel_for(size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = i; j < size; ++j) u_[size_t(i * size + j)] = float(shared_[size_t(i * size + j)]);
  });
  mirror_below(backend, shared_, size);
  for (int64_t i = 0; i < size; ++i) shared_[size_t(i * size + i)] = curvature_diagonal_[size_t(i)];
  if (!natural(order)) {
    std::vector<int32_t> back(order.size());
    for (size_t i = 0; i < order.size(); ++i) back[size_t(order[i])] = int32_t(i);
    permute_both(backend, shared_, back);
  }
  curvature.h = std::move(shared_);
  shared_.clear();
  holds_curvature_ = false;
}

InverseFactor factorize(Backend& backend, Curvature&& curvature, const FactorOptions& options,
                        const std::string& layer) {
  const int64_t n = curvature.size;
  const std::vector<double> diagonal = checked_diagonal(curvature, layer);
  const double trace = std::accumulate(diagonal.begin(), diagonal.end(), 0.0);
  InverseFactor factor;
  factor.size = n;
  factor.dead = curvature.dead;
  factor.order.resize(size_t(n));
  std::iota(factor.order.begin(), factor.order.end(), 0);
  if (options.act_order)
    std::stable_sort(factor.order.begin(), factor.order.end(),
                     [&](int32_t a, int32_t b) { return diagonal[size_t(a)] > diagonal[size_t(b)]; });
  std::vector<double>& u = factor.shared_;
  u = std::move(curvature.h);
  curvature.h.clear();
  factor.holds_curvature_ = true;
  if (!natural(factor.order)) permute_both(backend, u, factor.order);
  for (int64_t i = 0; i < n; ++i) factor.curvature_diagonal_.push_back(u[size_t(i * n + i)]);
  for (factor.damping = options.damping;; factor.damping *= 10) {
    // H is symmetric to begin with; a failed attempt leaves U's part undefined.
    if (factor.damping != options.damping) mirror_below(backend, u, n);
    for (int64_t i = 0; i < n; ++i)
      u[size_t(i * n + i)] = diagonal[size_t(factor.order[size_t(i)])] + factor.damping * trace / double(n);
    if (backend.run(FactorizeInverse{.h = u.data(), .size = n})) return factor;
    if (factor.damping >= kLargestDamping)
      throw Error(str(layer, ": the second moment of its inputs is not positive definite even with damping ",
                      factor.damping, "; use more or other calibration text"));
  }
}

OutputView ColumnBlock::columns(int64_t first, int64_t last) const {
  OutputView part(work.as<float>() + first, DType::f32, {work.shape[0], last - first});
  part.strides[0] = work.strides[0];
  return part;
}

TensorView ColumnBlock::factors(int64_t row, int64_t row_end, int64_t first, int64_t last) const {
  TensorView part(u.row(row - start) + first - start, DType::f32, {row_end - row, last - first});
  part.strides[0] = u.strides[0];
  return part;
}

void ColumnRounder::walk(Backend& backend, const ColumnBlock& block) {
  const int64_t start = block.start, stop = block.stop, n = block.factor.size;
  backend.parallel_for(block.work.shape[0], [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* w = block.work.row(row);
      for (int64_t i = start; i < stop; ++i) {
        if (block.dynamic_groups && i % block.group_size == 0)
          start_group(row, i / block.group_size, {w + i, size_t(std::min(block.group_size, n - i))});
        const float* u = block.u.row(i - start) - start;
        w[i] = (w[i] - round(row, block.factor.order[size_t(i)], w[i])) / u[i];
        for (int64_t j = i + 1; j < stop; ++j) w[j] -= w[i] * u[j];
      }
    }
  });
}

void solve_columns(Backend& backend, const InverseFactor& factor, ColumnProblem problem,
                   ColumnRounder& rounder) {
  const int64_t n = factor.size, rows = problem.rows;
  CHECK(int64_t(problem.weight.size()) == rows * n);
  CHECK(!problem.dynamic_groups || natural(factor.order), "dynamic groups need the natural column order");
  std::vector<float>& work = problem.weight;
  reorder(backend, factor, work);
  std::vector<float> u(size_t(std::min(n, kOuterColumns) * n));
  for (int64_t outer = 0; outer < n;) {
    const int64_t outer_stop = end_of_block(problem, outer, n, kOuterColumns);
    backend.parallel_for(outer_stop - outer, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) factor.row(outer + i, outer, u.data() + i * (n - outer));
    });
    const auto feed_back = [&](const ColumnBlock& block, int64_t first, int64_t last, int64_t end) {
      if (last < end)
        backend.run(RankUpdate{.e = block.columns(first, last),
                               .u = block.factors(first, last, last, end),
                               .w = block.columns(last, end)});
    };
    ColumnBlock block{.start = outer,
                      .stop = outer_stop,
                      .work = {work.data(), DType::f32, {rows, n}},
                      .u = {u.data(), DType::f32, {outer_stop - outer, n - outer}},
                      .factor = factor,
                      .group_size = problem.group_size,
                      .dynamic_groups = problem.dynamic_groups};
    const ColumnBlock all = block;
    while (block.start < outer_stop) {
      block.stop = std::min(outer_stop, end_of_block(problem, block.start, n, kBlockColumns));
      block.u = all.factors(block.start, block.stop, block.start, n);
      rounder.walk(backend, block);
      feed_back(all, block.start, block.stop, outer_stop);
      block.start = block.stop;
    }
    feed_back(all, outer, outer_stop, n);
    outer = outer_stop;
  }
}

}  // namespace ballast
