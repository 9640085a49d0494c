// Recipes: choices that go together, by how much time they may take. Each holds what measured best on the bundled model
// at each width (RESULTS.md has the figures).
//
//   fast      GPTQ on centred inputs, biases compensated, ranges shrunk
//   balanced  also a float stream beside the quantized one: targets and biases make up for drift, columns by power
//   best      then scales and biases of the whole model tuned towards the float model
#pragma once

#include <string>

#include "quantize/recipe.h"

namespace ballast {

struct NamedRecipe {
  double damping = 0.01;
  bool act_order = false;
  bool asymmetric = false;
  bool correct_drift = false;
  int tune_epochs = 0;
};

/// Error listing the known names.
NamedRecipe named_recipe(const std::string& name);

}  // namespace ballast
