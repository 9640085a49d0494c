#include "quantize/named_recipe.h"

#include "kernels/check.h"

namespace ballast {

NamedRecipe named_recipe(const std::string& name, bool images) {
  NamedRecipe recipe;
  if (name == "fast") return recipe;
  recipe.damping = 0.03;
  recipe.act_order = recipe.asymmetric = recipe.correct_drift = true;
  recipe.sweeps = 6;
  if (images) {
    recipe.damping = 1;
    recipe.sweeps = 8;
    recipe.class_weight = 50;
    recipe.views = 2;
  }
  if (name == "balanced") return recipe;
  if (name != "best") throw Error("--recipe is \"" + name + "\", expected fast, balanced or best");
  recipe.tune_epochs = 2;
  if (images) {
    recipe.views = 4;
    recipe.tune_hidden = 5;
  }
  return recipe;
}

}  // namespace ballast
