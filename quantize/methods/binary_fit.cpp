#include "quantize/methods/binary_fit.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ballast {
namespace {

// After the fit, weights change to their nearest value and values to the mean of theirs, this often.
constexpr int kRefinements = 4;

double mean_of(std::span<const float> weights) {
  double sum = 0;
  for (float w : weights) sum += double(w);
  return weights.empty() ? 0 : sum / double(weights.size());
}

double sign(bool plus) {
  return plus ? 1 : -1;
}

int nearest_level(const std::array<double, 4>& levels, double weight) {
  int best = 0;
  for (int code = 1; code < 4; ++code)
    if (std::fabs(weight - levels[size_t(code)]) < std::fabs(weight - levels[size_t(best)])) best = code;
  return best;
}

// Four free levels: the outer group has the lowest and the highest.
void refine(std::span<const float> weights, SplitFit& fit) {
  for (int pass = 0; pass < kRefinements; ++pass) {
    std::array<double, 4> levels{fit.inner.mean - fit.inner.scale, fit.inner.mean + fit.inner.scale,
                                 fit.outer.mean - fit.outer.scale, fit.outer.mean + fit.outer.scale};
    std::array<double, 4> sums{}, counts{};
    for (float w : weights) {
      const size_t code = size_t(nearest_level(levels, double(w)));
      sums[code] += double(w), counts[code] += 1;
    }
    for (size_t code = 0; code < 4; ++code)
      if (counts[code] > 0) levels[code] = sums[code] / counts[code];
    fit.inner = {(levels[0] + levels[1]) / 2, (levels[1] - levels[0]) / 2};
    fit.outer = {(levels[2] + levels[3]) / 2, (levels[3] - levels[2]) / 2};
  }
}

// Mean and scales in turn, each the best for the signs and the other two.
void refine(std::span<const float> weights, ResidualFit& fit) {
  const double count = double(weights.size());
  for (int pass = 0; pass < kRefinements; ++pass) {
    const std::array<double, 4> levels{fit.mean - fit.scale1 - fit.scale2, fit.mean + fit.scale1 - fit.scale2,
                                       fit.mean - fit.scale1 + fit.scale2,
                                       fit.mean + fit.scale1 + fit.scale2};
    double sum = 0, sum1 = 0, sum2 = 0, signs1 = 0, signs2 = 0, both = 0;
    for (float w : weights) {
      const int code = nearest_level(levels, double(w));
      const double sign1 = sign(code & 1), sign2 = sign(code & 2);
      sum += double(w), sum1 += sign1 * double(w), sum2 += sign2 * double(w);
      signs1 += sign1, signs2 += sign2, both += sign1 * sign2;
    }
    fit.mean = (sum - fit.scale1 * signs1 - fit.scale2 * signs2) / count;
    fit.scale1 = (sum1 - fit.mean * signs1 - fit.scale2 * both) / count;
    fit.scale2 = (sum2 - fit.mean * signs2 - fit.scale1 * both) / count;
  }
}

}  // namespace

StageFit fit_stage(std::span<const float> weights) {
  StageFit fit{mean_of(weights)};
  for (float w : weights) fit.scale += std::fabs(double(w) - fit.mean);
  if (!weights.empty()) fit.scale /= double(weights.size());
  return fit;
}

double stage_error(std::span<const float> weights) {
  const StageFit fit = fit_stage(weights);
  double sum = 0;
  for (float w : weights) {
    const double error = std::fabs(double(w) - fit.mean) - fit.scale;
    sum += error * error;
  }
  return sum;
}

ResidualFit fit_residual(std::span<const float> weights) {
  if (weights.empty()) return {};
  const StageFit first = fit_stage(weights);
  ResidualFit fit{first.mean, first.scale, 0};
  for (float w : weights) fit.scale2 += std::fabs(std::fabs(double(w) - first.mean) - first.scale);
  fit.scale2 /= double(weights.size());
  refine(weights, fit);
  return fit;
}

double residual_error(std::span<const float> weights) {
  const StageFit first = fit_stage(weights);
  double scale = 0, sum = 0;
  for (float w : weights) scale += std::fabs(std::fabs(double(w) - first.mean) - first.scale);
  scale /= double(weights.size());
  for (float w : weights) {
    const double error = std::fabs(std::fabs(double(w) - first.mean) - first.scale) - scale;
    sum += error * error;
  }
  return sum;
}

SplitFit fit_split(std::span<const float> weights) {
  std::vector<float> sorted(weights.begin(), weights.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  const std::span<const float> all(sorted);
  size_t best = sorted.size(), last = 0;
  double best_error = INFINITY;
  for (size_t percent = 10; percent <= 90; ++percent) {
    const size_t at = sorted.size() * percent / 100;
    if (at == last) continue;
    last = at;
    const double error = stage_error(all.first(at)) + stage_error(all.subspan(at));
    if (error < best_error) best_error = error, best = at;
  }
  SplitFit fit{fit_stage(all.first(best)), fit_stage(all.subspan(best))};
  refine(weights, fit);
  return fit;
}

int nearest(const std::array<float, 4>& levels, float weight) {
  int best = 0;
  for (int code = 1; code < 4; ++code)
    if (std::fabs(weight - levels[size_t(code)]) < std::fabs(weight - levels[size_t(best)])) best = code;
  return best;
}

}  // namespace ballast
