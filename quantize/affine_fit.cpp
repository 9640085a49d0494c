#include "quantize/affine_fit.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace ballast {
namespace {

constexpr float kSmallestScale = 0x1p-14f;  // smallest normal binary16
constexpr float kLargestScale = 65504.0f;

int zero_point_for(float low, float scale, int max_code, bool symmetric) {
  return symmetric ? (max_code + 1) / 2 : std::clamp(int(std::nearbyint(-low / scale)), 0, max_code);
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
  Grid grid;
  grid.max_code = (1 << options.bits) - 1;
  if (options.symmetric) high = std::max(-low, high), low = -high;
  const float step = (high - low) / float(grid.max_code);
  if (!(step <= kLargestScale))
    throw Error(str("the range ", low, " … ", high, " needs a scale beyond binary16's ", kLargestScale));
  grid.scale = std::max(f16_to_f32(f32_to_f16(step)), kSmallestScale);
  grid.zero_point = zero_point_for(low, grid.scale, grid.max_code, options.symmetric);
  return grid;
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
  const float steps = std::nearbyint(weight / scale) + float(zero_point);
  return int(std::clamp(steps, 0.0f, float(max_code)));
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
  const int max_code = (1 << options.bits) - 1;
  const float low = range_of(weights, options).first;
  return {scale, zero_point_for(low, scale, max_code, options.symmetric), max_code};
}

}  // namespace ballast
