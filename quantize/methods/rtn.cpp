#include "quantize/methods/rtn.h"

#include "quantize/affine_fit.h"

namespace ballast {

LayerSolution solve_rtn(Backend& backend, const LayerProblem& problem) {
  AffineMatrix matrix = empty_matrix(problem);
  backend.parallel_for(problem.out_features, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t group = 0; group < matrix.groups(); ++group) {
        const size_t first = size_t(row * problem.in_features + group * matrix.group_size);
        const auto weights = problem.weight.subspan(first, size_t(matrix.group_size));
        const Grid grid = fit_grid(weights, problem.grid);
        store_grid(matrix, row, group, grid);
        for (size_t i = 0; i < weights.size(); ++i) matrix.codes[first + i] = uint8_t(grid.code(weights[i]));
      }
  });
  return {std::move(matrix)};
}

}  // namespace ballast
