#include "quantize/methods/gptq.h"

#include "quantize/affine_fit.h"
#include "quantize/coordinate_descent.h"
#include "quantize/unbias.h"

namespace ballast {
namespace {

class GridRounder final : public ColumnRounder {
 public:
  GridRounder(AffineMatrix& matrix, const GridOptions& options, const InverseFactor& factor)
      : matrix_(matrix),
        options_(options),
        scales_(matrix.scales.size()),
        zeros_(matrix.scales.size()),
        groups_(static_cast<size_t>(factor.size)) {
    for (int64_t i = 0; i < factor.size; ++i) {
      groups_[size_t(i)] = int32_t(factor.order[size_t(i)] / matrix.group_size);
      natural_ &= factor.order[size_t(i)] == i;
    }
    if (!natural_) solver_codes_.resize(matrix.codes.size());
  }

  void start_group(int64_t row, int64_t group, std::span<const float> weights) override {
    const Grid grid = fit_grid(weights, options_);
    store_grid(matrix_, row, group, grid);
    scales_[size_t(group * matrix_.out_features + row)] = grid.scale;
    zeros_[size_t(group * matrix_.out_features + row)] = grid.zero;
  }

  float round(int64_t, int64_t, float) override { CHECK(false, "whole blocks are rounded at once"); }

  void walk(Backend& backend, const ColumnBlock& block) override {
    for (int64_t first = block.start; first < block.stop;) {
      int64_t last = block.stop;
      if (block.dynamic_groups) {
        last = std::min(last, (first / block.group_size + 1) * block.group_size);
        if (first % block.group_size == 0) fit_group(backend, block, first);
      }
      round_columns(backend, block, first, last);
      if (last < block.stop) {
        backend.run(RankUpdate{.e = block.columns(first, last),
                               .u = block.factors(first, last, last, block.stop),
                               .w = block.columns(last, block.stop)});
      }
      first = last;
    }
  }

  /// Codes by original columns, where the walk took them in another order.
  void finish(Backend& backend, const InverseFactor& factor) {
    if (natural_) return;
    const int64_t n = matrix_.in_features;
    backend.parallel_for(matrix_.out_features, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < n; ++i)
          matrix_.codes[size_t(row * n + factor.order[size_t(i)])] = solver_codes_[size_t(row * n + i)];
    });
  }

 private:
  void fit_group(Backend& backend, const ColumnBlock& block, int64_t first) {
    backend.parallel_for(matrix_.out_features, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        start_group(row, first / block.group_size, {block.work.row(row) + first, size_t(block.group_size)});
    });
  }

  void round_columns(Backend& backend, const ColumnBlock& block, int64_t first, int64_t last) {
    const int64_t rows = matrix_.out_features, width = last - first;
    std::vector<uint8_t>& codes = natural_ ? matrix_.codes : solver_codes_;
    OutputView here(codes.data() + first, DType::u8, {rows, width});
    here.strides[0] = matrix_.in_features;
    backend.run(RoundColumns{.w = block.columns(first, last),
                             .u = block.factors(first, last, first, last),
                             .scales = {scales_.data(), DType::f32, {matrix_.groups(), rows}},
                             .zeros = {zeros_.data(), DType::f32, {matrix_.groups(), rows}},
                             .groups = {groups_.data() + first, DType::i32, {width}},
                             .codes = here,
                             .max_code = (1 << options_.bits) - 1});
  }

  AffineMatrix& matrix_;
  const GridOptions& options_;
  std::vector<float> scales_, zeros_;  ///< [groups, rows]
  std::vector<int32_t> groups_;        ///< of solver columns
  bool natural_ = true;                ///< solver columns are the original ones
  std::vector<uint8_t> solver_codes_;  ///< [rows, size] in solver order, unless natural
};

// Uniform rounding errors are orthogonal to the output by themselves; those of refitted scales are not.
void polish(Backend& backend, const LayerProblem& problem, double damping, AffineMatrix& matrix) {
  const MethodOptions& options = problem.options;
  const Curvature& curvature = problem.input->curvature();
  coordinate_descent(backend, problem.weight, curvature, matrix,
                     {.sweeps = options.sweeps,
                      .order = options.greedy_order ? ColumnOrder::greedy : ColumnOrder::natural,
                      .anneal = options.anneal,
                      .refit_scales = options.refit_scales,
                      .move_grids = !problem.grid.symmetric,
                      .max_code = (1 << problem.grid.bits) - 1,
                      .damping = damping});
  if (options.unbiased_scales) unbias(backend, problem.weight, curvature, damping, matrix);
}

}  // namespace

LayerSolution solve_gptq(Backend& backend, const LayerProblem& problem) {
  CHECK(problem.input);
  const InverseFactor& factor = problem.input->factor();
  AffineMatrix matrix = empty_matrix(problem);
  GridRounder rounder(matrix, problem.grid, factor);
  // One group per row: its grid belongs to the original row, as in the paper.
  const bool dynamic = !problem.static_groups && matrix.groups() > 1;
  if (!dynamic) {
    backend.parallel_for(problem.out_features, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t group = 0; group < matrix.groups(); ++group)
          rounder.start_group(
              row, group,
              problem.weight.subspan(size_t(row * problem.in_features + group * matrix.group_size),
                                     size_t(matrix.group_size)));
    });
  }
  solve_columns(backend, factor,
                {.rows = problem.out_features,
                 .weight = {problem.weight.begin(), problem.weight.end()},
                 .group_size = matrix.group_size,
                 .dynamic_groups = dynamic},
                rounder);
  rounder.finish(backend, factor);
  if (problem.options.sweeps > 0) polish(backend, problem, factor.damping, matrix);
  return {std::move(matrix), factor.damping};
}

}  // namespace ballast
