// Mixed precision: a width for every layer, so that the mean of stored bits per weight meets a target at the least
// predicted loss.
//
// The prediction is the second-order term of the loss (OAC, arXiv 2405.15025, §3, with GuidedQuant's estimate of the
// curvature, arXiv 2505.07004): a layer quantized to b bits costs Σ over its rows of d·H·dᵀ with
// H = E[mean_j(dz_j²)·x xᵀ], gathered from the gradients of the float model, d the rows of W − Q at that width.
// Layers are compared in units of the loss, and taken as independent.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"
#include "engine/nn/model.h"
#include "quantize/data.h"
#include "quantize/recipe.h"

namespace ballast {

struct WidthChoice {
  int bits = 0;
  double stored_bits = 0;  ///< of the whole layer, scales and zero points included
  double cost = 0;         ///< predicted increase of the loss
};

struct WidthProblem {
  std::string module;
  double weights = 0;
  std::vector<WidthChoice> choices;  ///< at least one, stored bits ascending
};

/// Index of the choice for each module: the least total cost found under a mean of `target` stored bits per weight.
/// From the cheapest choices on, whatever lowers the cost most per bit is taken while it fits. Error when even the
/// cheapest choices exceed the target, saying what they need.
std::vector<size_t> allocate_widths(const std::vector<WidthProblem>& problems, double target);

struct WidthJob {
  const Checkpoint& source;
  Backend& backend;
  nn::Model& model;
  const CalibrationTokens& tokens;  ///< the first few samples are used
  const Recipe& recipe;             ///< target_bits set; modules with an override, and the head if it has its bits, are pinned
  std::function<void(int64_t done, int64_t all)> progress = [](int64_t, int64_t) {};
};

/// What every width would cost, for all modules but those that an override leaves in float. Pinned modules have one choice.
std::vector<WidthProblem> width_problems(const WidthJob& job);

/// Width by module name, the head's under its own; modules left in float by an override are not listed.
std::map<std::string, int> choose_widths(const WidthJob& job);

}  // namespace ballast
