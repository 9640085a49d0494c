#include "tools/recipe_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "quantize/methods.h"

namespace ballast {
namespace {

constexpr int kMostHalfZeroBits = 4;  // of AffineMatrix

std::regex compile(const std::string& flag, const std::string& pattern) {
  if (pattern.size() > 512)
    throw Error(fmt::format("{}: the pattern has {} characters, at most 512", flag, pattern.size()));
  try {
    return std::regex(pattern, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    throw Error(fmt::format("{} \"{}\" is not a regular expression: {}", flag, pattern, error.what()));
  }
}

int64_t whole_number(const std::string& flag, const std::string& text) {
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size())
    throw Error(fmt::format("{}: \"{}\" is not a whole number", flag, text));
  return value;
}

// PATTERN=BITS or PATTERN=BITS:GROUP
LayerOverride parse_override(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0)
    throw Error(fmt::format("--override \"{}\": expected PATTERN=BITS or PATTERN=BITS:GROUP", text));
  const std::string value = text.substr(equals + 1);
  const size_t colon = value.find(':');
  LayerOverride rule;
  rule.pattern = text.substr(0, equals);
  rule.regex = compile("--override", rule.pattern);
  rule.bits = int(std::clamp<int64_t>(whole_number("--override", value.substr(0, colon)), -1, 99));
  if (colon != std::string::npos) rule.group_size = whole_number("--override", value.substr(colon + 1));
  if (rule.group_size < -1) throw Error(fmt::format("--override \"{}\": the group size is negative", text));
  return rule;
}

std::string recipe_name(const RecipeFlags& flags) {
  return flags.name.empty() ? "balanced" : flags.name;
}

// The named recipe's part of the choices, but for those that a flag made.
void apply_named(const RecipeFlags& flags, const NamedRecipe& named, Recipe& recipe) {
  const auto given = [&](std::initializer_list<const char*> any) {
    return std::any_of(any.begin(), any.end(), flags.given);
  };
  if (recipe.method != "gptq")
    throw Error(fmt::format("--recipe {} makes no sense with --method {}: recipes are built on gptq",
                            flags.name, recipe.method));
  if (!given({"--range-shrink", "--clip-search"})) recipe.grid.range_shrink = 0;
  if (!given({"--zero-points", "--symmetric"})) recipe.grid.half_zero_bits = named.half_zero_bits;
  if (!given({"--damping"})) recipe.damping = named.damping;
  if (!given({"--act-order", "--static-groups"})) recipe.act_order = named.act_order;
  if (!given({"--asymmetric", "--gptaq"})) recipe.asymmetric = named.asymmetric;
  if (!given({"--correct-drift"})) recipe.correct_drift = named.correct_drift;
  // Through rounded activations tuning lost, whatever its loss: W4A4 of DeiT-Tiny, 73.8 % against 75.2 %.
  const bool tunable = recipe.compensation != Compensation::none &&
                       recipe.compensation != Compensation::position && recipe.activation_bits == 0;
  if (!given({"--tune"}) && tunable) recipe.tune_epochs = named.tune_epochs;
  if (!given({"--tune-hidden"}) && recipe.tune_epochs > 0) recipe.tune_hidden = named.tune_hidden;
  if (!given({"--sweeps", "--gptaq"}) && named.sweeps >= 0) recipe.options.sweeps = named.sweeps;
  if (!given({"--class-weight"})) recipe.class_weight = named.class_weight;
}

}  // namespace

std::optional<NamedRecipe> chosen_recipe(const RecipeFlags& flags, bool images) {
  if (flags.name.empty() && flags.given("--method")) return {};
  return named_recipe(recipe_name(flags), images);
}

Recipe finished_recipe(const RecipeFlags& flags, bool images) {
  Recipe recipe = flags.recipe;
  if (recipe.target_bits > 0) {
    if (recipe.grid.bits != 0) throw Error("--target-bits chooses the widths: leave --bits out");
    recipe.grid.bits = recipe.target_bits < 3 ? 2 : recipe.target_bits < 4 ? 3 : 4;
  }
  recipe.fill_defaults();
  if (flags.scale_scope != "channel" && flags.scale_scope != "layer")
    throw Error(fmt::format("--scale-scope is \"{}\", expected channel or layer", flags.scale_scope));
  recipe.options.per_layer = flags.scale_scope == "layer";
  if (flags.zero_points != "whole" && flags.zero_points != "half")
    throw Error(fmt::format("--zero-points is \"{}\", expected whole or half", flags.zero_points));
  if (flags.zero_points == "half" && recipe.grid.bits > kMostHalfZeroBits)
    throw Error(
        fmt::format("--zero-points half makes no sense with --bits {}: it takes codes of at most {} bits",
                    recipe.grid.bits, kMostHalfZeroBits));
  recipe.grid.half_zero_bits = flags.zero_points == "half" ? kMostHalfZeroBits : 0;
  // With error feedback the plain channel mean gains little; codes for centred inputs and the drift of
  // earlier layers do.
  const bool feedback = method_named(recipe.method).uses_curvature;
  recipe.compensation = flags.compensation.empty() ? (recipe.activation_bits > 0 ? Compensation::token
                                                      : feedback                 ? Compensation::joint
                                                                                 : Compensation::channel)
                                                   : compensation_named(flags.compensation);
  recipe.correct_drift = flags.correct_drift.value_or((feedback || recipe.activation_bits > 0) &&
                                                      recipe.compensation != Compensation::none);
  if (const auto named = chosen_recipe(flags, images)) {
    apply_named(flags, *named, recipe);
    recipe.name = recipe_name(flags);
  }
  // First and last layers are kept at 8 bits where the others have fewer, as is usual.
  if (recipe.activation_bits > 0 && !flags.given("--head-bits")) recipe.head_bits = 8;
  if (recipe.compensation == Compensation::none && !flags.correct_drift) recipe.correct_drift = false;
  for (const std::string& text : flags.overrides) recipe.overrides.push_back(parse_override(text));
  for (const std::string& pattern : flags.skips)
    recipe.overrides.push_back({.pattern = pattern, .regex = compile("--skip", pattern), .bits = 0});
  recipe.check();
  return recipe;
}

}  // namespace ballast
