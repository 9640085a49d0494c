// A place in a model whose values are rounded to a grid while it runs: each linear's input, both operands of Q·Kᵀ and
// of probabilities·V. Named like a weight: "…fc1.input", "…query.output", "…attention.probabilities".
#pragma once

#include <optional>
#include <string>

#include "engine/nn/context.h"
#include "kernels/encodings/activation.h"

namespace ballast::nn {

struct ActivationSite {
  std::string name;
  std::optional<ActivationGrid>* grid;  ///< the model's own; empty: values stay as they are
};

/// x rounded, in the workspace, or x itself without a grid. On the way back the rounding counts as the identity, also
/// where it clips.
TensorView rounded(const ForwardContext& context, const std::optional<ActivationGrid>& grid,
                   const TensorView& x);

}  // namespace ballast::nn
