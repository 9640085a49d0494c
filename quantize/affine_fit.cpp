#include "quantize/affine_fit.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/encodings/affine.h"
#include "quantize/scale_range.h"

namespace ballast {
namespace {

// Whole ones can be in the middle of the codes only for a code more to one side.
int zero_point_for(float low, float scale, const GridOptions& options) {
  const int middle = 1 << (options.bits - 1), max_code = 2 * middle - 1;
  if (options.symmetric) return options.half_zeros() ? middle - 1 : middle;
  const float steps = -low / scale;
  return std::clamp(int(std::nearbyint(options.half_zeros() ? 2 * steps - float(middle) : steps)), 0,
                    max_code);
}

Grid grid_of(float scale, float low, const GridOptions& options) {
  const int zero_point = zero_point_for(low, scale, options);
  return {scale, zero_point, 0.5f * float(twice_zero(zero_point, options.bits, options.half_zeros())),
          (1 << options.bits) - 1};
}

// The range, always holding 0.
std::pair<float, float> range_of(std::span<const float> weights, const GridOptions& options) {
  float low = 0, high = 0;
  for (float weight : weights) {
    if (!std::isfinite(weight)) throw Error(str("a weight is ", weight));
    low = std::min(low, weight);
    high = std::max(high, weight);
  }
  if (low == 0 && high == 0) low = -1, high = 1;
  const float shrink = float(options.range_shrink);
  return {low * shrink, high * shrink};
}

Grid make_grid(float low, float high, const GridOptions& options) {
  const int max_code = (1 << options.bits) - 1;
  if (options.symmetric) high = std::max(-low, high), low = -high;
  const float step = (high - low) / float(max_code);
  if (!(step <= kLargestScale))
    throw Error(str("the range ", low, " … ", high, " needs a scale beyond binary16's ", kLargestScale));
  return grid_of(std::max(f16_to_f32(f32_to_f16(step)), smallest_scale(options.half_zeros())), low, options);
}

// Σ |w − round(w)|^2.4, the released code's norm: between 2 and the maximum.
double clip_loss(std::span<const float> weights, const Grid& grid, double bound) {
  double loss = 0;
  for (float weight : weights) {
    loss += std::pow(double(std::fabs(weight - grid.round(weight))), 2.4);
    if (loss >= bound) break;
  }
  return loss;
}

}  // namespace

int Grid::code(float weight) const {
  return int(nearest_code(weight / scale, zero, float(max_code)));
}

Grid fit_grid(std::span<const float> weights, const GridOptions& options) {
  const auto [low, high] = range_of(weights, options);
  Grid best = make_grid(low, high, options);
  if (!options.clip_search) return best;
  double best_loss = clip_loss(weights, best, INFINITY);
  for (int percent = 1; percent < 80; ++percent) {
    const float keep = 1 - float(percent) / 100;
    const Grid grid = make_grid(keep * low, keep * high, options);
    const double loss = clip_loss(weights, grid, best_loss);
    if (loss < best_loss) best_loss = loss, best = grid;
  }
  return best;
}

Grid fit_zero_point(std::span<const float> weights, float scale, const GridOptions& options) {
  return grid_of(scale, range_of(weights, options).first, options);
}

}  // namespace ballast
