// Means and scales of binarized weights (BiLLM, arXiv 2402.04291, §3): a set of weights stands for
// mean ± scale (one stage), mean ± scale1 ± scale2 (residual), or two one-stage groups.
#pragma once

#include <array>
#include <span>

namespace ballast {

struct StageFit {
  double mean = 0, scale = 0;
};

struct ResidualFit {
  double mean = 0, scale1 = 0, scale2 = 0;
};

/// Small magnitudes and large ones.
struct SplitFit {
  StageFit inner, outer;
};

/// mean |w − mean| is the best scale for the signs of w − mean (equation 5). Zeros for an empty set.
StageFit fit_stage(std::span<const float> weights);
/// Σ (w − q)² of fit_stage.
double stage_error(std::span<const float> weights);

/// The residual of the first stage is binarized again (equation 9).
ResidualFit fit_residual(std::span<const float> weights);
double residual_error(std::span<const float> weights);

/// The split at 10 … 90 % of the magnitudes with the least error (§3.4).
SplitFit fit_split(std::span<const float> weights);

/// The code of the nearest level; the smaller code in a tie.
int nearest(const std::array<float, 4>& levels, float weight);

}  // namespace ballast
