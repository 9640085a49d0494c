// How to quantize, from flags: a method of one's own or a named recipe, and what was asked for beside it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "quantize/named_recipe.h"
#include "quantize/recipe.h"

namespace ballast {

struct RecipeFlags {
  Recipe recipe;     ///< what flags set directly
  std::string name;  ///< of the recipe; empty: balanced, or none where a method is named
  std::function<bool(const char* flag)> given;  ///< whether a flag was set: it wins over the recipe
  std::string scale_scope = "channel", zero_points = "whole";
  std::string compensation;           ///< empty: the method's default
  std::optional<bool> correct_drift;  ///< empty: the method's default
  std::vector<std::string> overrides, skips;
};

/// The named recipe that the flags come to, if any. `images`: the model is an image classifier.
std::optional<NamedRecipe> chosen_recipe(const RecipeFlags& flags, bool images);
/// The whole recipe, checked. Error, naming the flag, for a value or a combination that makes no sense.
Recipe finished_recipe(const RecipeFlags& flags, bool images);

}  // namespace ballast
