#include "quantize/methods/comq.h"

#include "quantize/affine_fit.h"
#include "quantize/coordinate_descent.h"
#include "quantize/unbias.h"

namespace ballast {
namespace {

constexpr int kSweeps = 16;

template <class Fit>
void for_each_group(Backend& backend, const LayerProblem& problem, AffineMatrix& matrix, Fit&& fit) {
  backend.parallel_for(problem.out_features, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t group = 0; group < matrix.groups(); ++group) {
        const size_t first = size_t(row * problem.in_features + group * matrix.group_size);
        store_grid(matrix, row, group, fit(problem.weight.subspan(first, size_t(matrix.group_size))));
      }
  });
}

// The mean of the steps that the rows would choose: the widest would leave most rows with few codes.
float shared_scale(const AffineMatrix& matrix) {
  double sum = 0;
  for (uint16_t scale : matrix.scales) sum += double(f16_to_f32(scale));
  return f16_to_f32(f32_to_f16(float(sum / double(matrix.scales.size()))));
}

}  // namespace

LayerSolution solve_comq(Backend& backend, const LayerProblem& problem) {
  CHECK(problem.input);
  const MethodOptions& options = problem.options;
  AffineMatrix matrix = empty_matrix(problem);
  for_each_group(backend, problem, matrix,
                 [&](std::span<const float> weights) { return fit_grid(weights, problem.grid); });
  if (options.per_layer) {
    const float scale = shared_scale(matrix);
    for_each_group(backend, problem, matrix, [&](std::span<const float> weights) {
      return fit_zero_point(weights, scale, problem.grid);
    });
  }
  const double damping = problem.input->options().damping;
  coordinate_descent(backend, problem.weight, problem.input->curvature(), matrix,
                     {.sweeps = options.sweeps < 0 ? kSweeps : options.sweeps,
                      .order = options.greedy_order ? ColumnOrder::greedy : ColumnOrder::blocks,
                      .anneal = options.anneal,
                      .refit_scales = options.refit_scales,
                      .per_layer = options.per_layer,
                      .move_grids = !problem.grid.symmetric,
                      .start_at_target = true,
                      .max_code = (1 << problem.grid.bits) - 1,
                      .damping = damping});
  // One scale for all rows cannot give each its own gain.
  if (options.unbiased_scales && !options.per_layer)
    unbias(backend, problem.weight, problem.input->curvature(), damping, matrix);
  return {std::move(matrix), damping};
}

}  // namespace ballast
