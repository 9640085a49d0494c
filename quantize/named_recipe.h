// Recipes: choices that go together, by how much time they may take. Each holds what measured best at each width, on the
// bundled model for text and on DeiT-Tiny for images (RESULTS.md has the figures).
//
//   fast      GPTQ on centred inputs, biases compensated, ranges shrunk, half zero points at 2 bits
//   balanced  also a float stream beside the quantized one: targets and biases make up for drift; columns by power; then
//             sweeps over codes, zeros and scales
//   best      then scales and biases of the whole model tuned towards the float model
//
// Tuning leaves codes alone in best: moving them (--tune-codes 0.025) brings the calibration text closer, but measured no
// better on other text at 2 bits, worse at 3, and images worse: there is too little to learn from.
//
// With images balanced and best lean less on what was seen: a hundred images hold many patches, but only a hundred class
// tokens. So damping is heavy, the class token counts for many, and best sees more views of the images and tunes towards the
// hidden states, too: the logits alone would be learned by heart.
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
  double tune_hidden = 0;
  int sweeps = -1;  ///< -1: the method's own
  /// GridOptions' own. At 3 bits they measured hardly better, and published layouts hold whole ones.
  int half_zero_bits = 2;
  int64_t class_weight = 1, views = 1;
};

/// `images`: for an image classifier, not a language model. Error listing the known names.
NamedRecipe named_recipe(const std::string& name, bool images);

}  // namespace ballast
