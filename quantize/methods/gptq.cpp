#include "quantize/methods/gptq.h"

#include "quantize/affine_fit.h"
#include "quantize/coordinate_descent.h"
#include "quantize/unbias.h"

namespace ballast {
namespace {

class GridRounder final : public ColumnRounder {
 public:
  GridRounder(AffineMatrix& matrix, const GridOptions& options)
      : matrix_(matrix), options_(options), grids_(matrix.scales.size()) {}

  void start_group(int64_t row, int64_t group, std::span<const float> weights) override {
    const Grid grid = fit_grid(weights, options_);
    grids_[size_t(row * matrix_.groups() + group)] = grid;
    store_grid(matrix_, row, group, grid);
  }

  float round(int64_t row, int64_t column, float weight) override {
    const Grid& grid = grids_[size_t(row * matrix_.groups() + column / matrix_.group_size)];
    const int code = grid.code(weight);
    matrix_.codes[size_t(row * matrix_.in_features + column)] = uint8_t(code);
    return grid.value(code);
  }

 private:
  AffineMatrix& matrix_;
  const GridOptions& options_;
  std::vector<Grid> grids_;  ///< as the matrix's scales
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
                      .move_zero_points = !problem.grid.symmetric,
                      .damping = damping});
  if (options.unbiased_scales) unbias_scales(backend, problem.weight, curvature, damping, matrix);
}

}  // namespace

LayerSolution solve_gptq(Backend& backend, const LayerProblem& problem) {
  CHECK(problem.input);
  const InverseFactor& factor = problem.input->factor();
  AffineMatrix matrix = empty_matrix(problem);
  GridRounder rounder(matrix, problem.grid);
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
  if (problem.options.sweeps > 0) polish(backend, problem, factor.damping, matrix);
  return {std::move(matrix), factor.damping};
}

}  // namespace ballast
