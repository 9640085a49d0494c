// Which choices each method takes, and what it says to the others.
#include <gtest/gtest.h>

#include <cmath>

#include "quantize/methods.h"

namespace ballast {
namespace {

Recipe recipe_of(const char* method) {
  Recipe recipe;
  recipe.method = method;
  recipe.grid.bits = 0;
  recipe.grid.group_size = -1;
  recipe.damping = -1;
  if (!method_named(method).has_width(4)) {
    recipe.fill_defaults();
  } else {
    recipe.grid.bits = 4;
    recipe.fill_defaults();
  }
  if (!method_named(method).uses_curvature) recipe.compensation = Compensation::channel;
  return recipe;
}

std::string refusal(const Recipe& recipe) {
  try {
    recipe.check();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(MethodOptions, DefaultsArePassedThroughEachMethodsOwnCheck) {
  for (const char* method : {"rtn", "gptq", "comq", "spqr", "billm"}) {
    const Recipe recipe = recipe_of(method);
    EXPECT_EQ(refusal(recipe), "") << method;
    EXPECT_EQ(recipe.damping, 0.01);
  }
  EXPECT_EQ(recipe_of("spqr").grid.group_size, 16);
  EXPECT_EQ(recipe_of("gptq").grid.group_size, 0);
  EXPECT_EQ(recipe_of("billm").grid.bits, 1);
  EXPECT_EQ(recipe_of("comq").options.sweeps, 16);
  EXPECT_EQ(recipe_of("gptq").options.sweeps, 0);
}

TEST(MethodOptions, BitsAreAskedForWhereThereIsAChoice) {
  Recipe recipe;
  recipe.grid.bits = 0;
  try {
    recipe.fill_defaults();
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "--bits is missing: expected 2, 3, 4, 6 or 8");
  }
  recipe = recipe_of("billm");
  recipe.grid.bits = 2;
  EXPECT_EQ(refusal(recipe), "--bits is 2, expected 1, the only width of --method billm");
  recipe = recipe_of("gptq");
  recipe.grid.bits = 1;
  EXPECT_EQ(refusal(recipe), "--bits is 1, expected 2, 3, 4, 6 or 8");
  recipe = recipe_of("billm");
  recipe.head_bits = 4;
  EXPECT_EQ(refusal(recipe), "--head-bits is 4, expected 1, the only width of --method billm");
}

TEST(MethodOptions, WhatMakesNoSenseIsRefusedWithTheReason) {
  const struct {
    const char* method;
    void (*change)(Recipe&);
    const char* what;
  } cases[] = {
      {"rtn", [](Recipe& r) { r.options.sweeps = 2; }, "--sweeps makes no sense with --method rtn"},
      {"spqr", [](Recipe& r) { r.options.sweeps = 2; }, "--sweeps makes no sense with --method spqr"},
      {"comq", [](Recipe& r) { r.options.sweeps = 0; }, "--sweeps is 0"},
      {"gptq", [](Recipe& r) { r.options.sweeps = -2; }, "--sweeps is -2"},
      {"gptq", [](Recipe& r) { r.options.greedy_order = true; }, "add --sweeps"},
      {"gptq", [](Recipe& r) { r.options.anneal = false; }, "--no-anneal makes no sense"},
      {"gptq", [](Recipe& r) { r.options.refit_scales = false; }, "--no-refit-scales makes no sense"},
      {"spqr", [](Recipe& r) { r.options.refit_scales = false; }, "--no-refit-scales makes no sense"},
      {"gptq", [](Recipe& r) { r.options.unbiased_scales = false; }, "--no-unbiased-scales makes no sense"},
      {"gptq", [](Recipe& r) { r.options.per_layer = true; }, "only comq"},
      {"gptq", [](Recipe& r) { r.options.stat_bits = 4; }, "--stat-bits makes no sense"},
      {"billm", [](Recipe& r) { r.options.outlier_threshold = 1; }, "--outlier-threshold makes no sense"},
      {"spqr", [](Recipe& r) { r.options.block_size = 64; }, "--block-size makes no sense"},
      {"spqr", [](Recipe& r) { r.options.stat_bits = 9; }, "--stat-bits is 9, expected 1 to 8"},
      {"spqr", [](Recipe& r) { r.options.outlier_threshold = 0; }, "--outlier-threshold is 0"},
      {"spqr", [](Recipe& r) { r.options.outlier_threshold = NAN; }, "--outlier-threshold is "},
      {"billm", [](Recipe& r) { r.options.block_size = 0; }, "--block-size is 0"},
      {"billm", [](Recipe& r) { r.grid.group_size = 64; }, "--group-size makes no sense"},
      {"billm", [](Recipe& r) { r.grid.range_shrink = 0.9; }, "--range-shrink makes no sense"},
      {"spqr", [](Recipe& r) { r.grid.symmetric = true; }, "--symmetric makes no sense"},
      {"spqr", [](Recipe& r) { r.act_order = true; }, "--act-order makes no sense"},
      {"comq", [](Recipe& r) { r.static_groups = true; }, "--static-groups makes no sense"},
      {"gptq", [](Recipe& r) { r.gptaq = 1.5; }, "--gptaq is 1.5"},
      {"comq", [](Recipe& r) { r.gptaq = 1; }, "--gptaq makes no sense with --method comq"},
      {"gptq", [](Recipe& r) { r.gptaq = 1, r.asymmetric = true; }, "--gptaq makes no sense with --asymmetric"},
      {"gptq", [](Recipe& r) { r.gptaq = 1, r.options.sweeps = 2; }, "--gptaq makes no sense with --sweeps"},
      {"gptq", [](Recipe& r) { r.gptaq = 1, r.curvature = CurvatureKind::guided; }, "--gptaq makes no sense with --curvature guided"},
      {"comq", [](Recipe& r) { r.options.per_layer = true, r.grid.group_size = 64; }, "--scale-scope layer"},
  };
  for (const auto& refused : cases) {
    Recipe recipe = recipe_of(refused.method);
    refused.change(recipe);
    EXPECT_NE(refusal(recipe).find(refused.what), std::string::npos)
        << refused.method << ", " << refused.what << ": " << refusal(recipe);
  }
}

TEST(MethodOptions, OwnOptionsAreTaken) {
  Recipe recipe = recipe_of("gptq");
  recipe.options = {.sweeps = 3, .greedy_order = true, .refit_scales = false, .unbiased_scales = false};
  EXPECT_EQ(refusal(recipe), "");
  recipe = recipe_of("comq");
  recipe.options.per_layer = true;
  EXPECT_EQ(refusal(recipe), "");
  recipe = recipe_of("spqr");
  recipe.options.outlier_threshold = INFINITY;
  recipe.options.stat_bits = 4;
  EXPECT_EQ(refusal(recipe), "");
  recipe = recipe_of("billm");
  recipe.options.block_size = 64;
  recipe.options.unbiased_scales = false;
  EXPECT_EQ(refusal(recipe), "");
}

// What is planned is what solving then stores, outliers apart.
TEST(MethodOptions, PlannedBitsAreTheStoredOnes) {
  const auto backend = find_backend({.device = "cpu"});
  std::vector<float> weight(40 * 160);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = std::sin(float(i) * 1.7f);
  Curvature identity{160, std::vector<double>(160 * 160), std::vector<uint8_t>(160)};
  for (size_t i = 0; i < 160; ++i) identity.h[i * 161] = 1;
  for (const char* name : {"rtn", "gptq", "comq", "spqr", "billm"}) {
    const Method& method = method_named(name);
    LayerInput input(*backend, identity, {}, "layer");
    LayerProblem problem{.name = "layer",
                         .out_features = 40,
                         .in_features = 160,
                         .weight = weight,
                         .grid = {.bits = method.bits.back(), .group_size = 32},
                         .input = &input};
    problem.options.outlier_threshold = INFINITY;
    const double stored = bits_per_weight(method.solve(*backend, problem).matrix);
    EXPECT_DOUBLE_EQ(method.stored_bits(40, 160, problem.grid, problem.options), stored) << name;
  }
}

}  // namespace
}  // namespace ballast
