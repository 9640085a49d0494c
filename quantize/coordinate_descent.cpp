#include "quantize/coordinate_descent.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/descent.h"

namespace ballast {
namespace {

// Annealing starts where the curvature is all but the identity, and leaves the last sweeps to the objective
// itself.
constexpr double kHeavyDamping = 100;
constexpr int kFinalSweeps = 2, kFewestAnnealed = 6;

// Damping of one sweep of `all`, falling by a constant factor.
double annealed(double damping, int sweep, int all) {
  const int steps = all - kFinalSweeps;
  if (sweep >= steps) return damping;
  return kHeavyDamping * std::pow(std::max(damping, 1e-3) / kHeavyDamping, double(sweep) / double(steps));
}

}  // namespace

CoordinateResult coordinate_descent(Backend& backend, std::span<const float> target,
                                    const Curvature& curvature, AffineMatrix& matrix,
                                    const CoordinateOptions& options) {
  CoordinateResult result;
  const AffineMatrix start = options.start_at_target ? AffineMatrix{} : matrix;
  Descent descent(backend, target, curvature, matrix, options);
  descent.set_damping(options.damping);
  std::vector<double> before;
  if (!options.start_at_target) {
    descent.recompute_residual();
    before = descent.objective();
  }
  const bool anneal = options.anneal && options.sweeps >= kFewestAnnealed;
  bool fresh = true;
  while (result.sweeps < options.sweeps) {
    if (anneal) descent.set_damping(annealed(options.damping, result.sweeps, options.sweeps));
    const bool at_objective = !anneal || result.sweeps >= options.sweeps - kFinalSweeps;
    ++result.sweeps;
    int64_t moved = descent.sweep();
    if (options.move_grids) moved += descent.move_grids();
    fresh = options.refit_scales && descent.refit();
    if (fresh) descent.recompute_residual();
    if (moved == 0 && at_objective) break;
  }
  if (!fresh) descent.recompute_residual();
  std::vector<double> after = descent.objective();
  if (!options.start_at_target) descent.restore_worse_rows(start, before, after);
  result.before = std::accumulate(before.begin(), before.end(), 0.0);
  result.after = std::accumulate(after.begin(), after.end(), 0.0);
  return result;
}

}  // namespace ballast
