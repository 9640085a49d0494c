#include "quantize/recipe.h"

#include <algorithm>

#include "kernels/check.h"
#include "quantize/methods.h"

namespace ballast {
namespace {

constexpr std::pair<Compensation, const char*> kCompensations[] = {{Compensation::none, "none"},
                                                                   {Compensation::channel, "channel"},
                                                                   {Compensation::joint, "joint"},
                                                                   {Compensation::token, "token"},
                                                                   {Compensation::position, "position"}};

constexpr std::pair<CurvatureKind, const char*> kCurvatures[] = {
    {CurvatureKind::activation, "activation"},
    {CurvatureKind::output_adaptive, "output-adaptive"},
    {CurvatureKind::guided, "guided"}};

GridOptions resolved(GridOptions grid, const std::string& module, int64_t in_features) {
  if (grid.group_size == 0 || grid.group_size > in_features) grid.group_size = in_features;
  if (grid.bits != 0 && in_features % grid.group_size != 0)
    throw Error(
        str("--group-size ", grid.group_size, " does not divide the ", in_features, " inputs of ", module));
  if (grid.range_shrink == 0)
    grid.range_shrink = standard_range_shrink(grid.bits, grid.group_size == in_features);
  return grid;
}

}  // namespace

double standard_range_shrink(int bits, bool whole_row) {
  switch (bits) {
    case 2:
      return 0.85;
    case 3:
      return whole_row ? 0.8 : 0.9;
    case 4:
      return whole_row ? 0.9 : 0.95;
    default:
      return 1;
  }
}

const char* name_of(Compensation compensation) {
  for (const auto& [value, name] : kCompensations)
    if (value == compensation) return name;
  return "?";
}

Compensation compensation_named(const std::string& name) {
  for (const auto& [value, known] : kCompensations)
    if (name == known) return value;
  throw Error("--compensate is \"" + name + "\", expected none, channel, joint, token or position");
}

const char* name_of(CurvatureKind curvature) {
  for (const auto& [value, name] : kCurvatures)
    if (value == curvature) return name;
  return "?";
}

CurvatureKind curvature_named(const std::string& name) {
  for (const auto& [value, known] : kCurvatures)
    if (name == known) return value;
  throw Error("--curvature is \"" + name + "\", expected activation, output-adaptive or guided");
}

void Recipe::fill_defaults() {
  const Method& solver = method_named(method);
  if (grid.bits == 0) {
    if (solver.bits.size() > 1) throw Error("--bits is missing: " + solver.widths());
    grid.bits = solver.bits.front();
  }
  if (grid.group_size == -1) grid.group_size = solver.group_size;
  if (damping == -1) damping = solver.damping;
  if (options.sweeps == -1) options.sweeps = std::max(solver.sweeps, 0);
}

void Recipe::check() const {
  const Method& solver = method_named(method);
  if (target_bits != 0 && (target_bits < 0 || !solver.has_width(2) || !solver.has_width(4)))
    throw Error(str("--target-bits is ", target_bits,
                    ": needs a positive average and a method with widths to choose from"));
  if (!solver.has_width(grid.bits)) throw Error(str("--bits is ", grid.bits, ", ", solver.widths()));
  if (head_bits != 0 && !solver.has_width(head_bits))
    throw Error(str("--head-bits is ", head_bits, ", ", solver.widths()));
  if (activation_bits != 0 && activation_bits != 4 && activation_bits != 6 && activation_bits != 8)
    throw Error(
        str("--activation-bits is ", activation_bits, ", expected 4, 6 or 8, or 0 for float activations"));
  if (activation_bits != 0 && one_pass)
    throw Error(
        "--one-pass makes no sense with --activation-bits: a site's grid is found behind the layers that are "
        "quantized already");
  if (grid.group_size < 0)
    throw Error(str("--group-size is ", grid.group_size, ", expected 0 (the row) or more"));
  if (!(grid.range_shrink >= 0 && grid.range_shrink <= 1))
    throw Error(str("--range-shrink is ", grid.range_shrink, ", expected more than 0, up to 1"));
  if (class_weight < 1 || class_weight > 1000)
    throw Error(str("--class-weight is ", class_weight, ", expected 1 to 1000"));
  if (!(damping > 0 && damping <= 100))
    throw Error(str("--damping is ", damping, ", expected more than 0, up to 100"));
  if (!solver.uses_curvature) {
    const auto refuse = [&](bool set, const char* flag, const char* why) {
      if (set) throw Error(str(flag, " makes no sense with --method ", method, ": ", why));
    };
    refuse(act_order, "--act-order", "columns are rounded independently");
    refuse(static_groups, "--static-groups", "weights never change before they are rounded");
    refuse(compensation == Compensation::joint, "--compensate joint",
           "its codes do not depend on the inputs; use --compensate channel");
  }
  if (curvature != CurvatureKind::activation && !solver.uses_curvature)
    throw Error(str("--curvature ", name_of(curvature), " makes no sense with --method ", method,
                    ": it looks at no inputs"));
  if (curvature != CurvatureKind::activation && one_pass)
    throw Error("--one-pass makes no sense with a curvature from gradients: it has passes of its own");
  if (curvature_groups < 1)
    throw Error(str("--curvature-groups is ", curvature_groups, ", expected 1 or more"));
  if (tune_epochs < 0 || tune_epochs > 1000)
    throw Error(str("--tune is ", tune_epochs, ", expected 0 to 1000"));
  if (!(tune_codes >= 0 && tune_codes <= 1))
    throw Error(str("--tune-codes is ", tune_codes, ", expected 0 (codes stay) to 1"));
  if (tune_codes > 0 && tune_epochs == 0)
    throw Error("--tune-codes makes no sense without --tune N: codes move in its passes");
  if (!(tune_hidden >= 0 && tune_hidden <= 1000))
    throw Error(str("--tune-hidden is ", tune_hidden, ", expected 0 to 1000"));
  if (tune_hidden > 0 && tune_epochs == 0)
    throw Error("--tune-hidden makes no sense without --tune N: it is part of its loss");
  if (tune_epochs > 0 && !solver.has_uniform_grid)
    throw Error(
        str("--tune makes no sense with --method ", method, ": only a uniform grid's scales are moved"));
  if (tune_epochs > 0 && (compensation == Compensation::none || compensation == Compensation::position))
    throw Error("--tune moves biases: it goes with --compensate channel or joint");
  if (asymmetric && !solver.uses_curvature)
    throw Error(str("--asymmetric makes no sense with --method ", method,
                    ": without feedback nothing is gained by moving the weights first"));
  if (!(gptaq >= 0 && gptaq <= 1))
    throw Error(str("--gptaq is ", gptaq, ", expected 0 (none) to 1 (as in the paper)"));
  if (gptaq > 0) {
    const auto refuse = [](bool set, const std::string& with, const char* why) {
      if (set) throw Error("--gptaq makes no sense with " + with + ": " + why);
    };
    refuse(method != "gptq", "--method " + method, "it is a form of gptq's error feedback");
    refuse(asymmetric, "--asymmetric",
           "both make up for the same drift of the inputs, which would count twice");
    refuse(curvature != CurvatureKind::activation, str("--curvature ", name_of(curvature)),
           "what it feeds back is a least-squares answer to the inputs themselves");
    refuse(options.sweeps > 0, "--sweeps",
           "they would take its corrections back, which their objective does not know");
  }
  check_options(solver, *this);
  if (correct_drift && compensation == Compensation::none)
    throw Error(
        "--correct-drift makes no sense with --compensate none: there is no bias correction to put it in");
  for (const LayerOverride& rule : overrides)
    if (rule.bits != 0 && !solver.has_width(rule.bits))
      throw Error(str("--override ", rule.pattern, ": bits is ", rule.bits, ", ", solver.widths()));
}

bool Recipe::centres_inputs() const {
  return compensation == Compensation::joint ||
         (compensation == Compensation::token && method_named(method).uses_curvature);
}

GridOptions Recipe::grid_for(const std::string& module, int64_t in_features) const {
  GridOptions out = grid;
  if (const auto chosen = layer_bits.find(module); chosen != layer_bits.end()) out.bits = chosen->second;
  for (const LayerOverride& rule : overrides) {
    if (!std::regex_search(module, rule.regex)) continue;
    out = grid;
    out.bits = rule.bits;
    if (rule.group_size >= 0) out.group_size = rule.group_size;
  }
  return resolved(out, module, in_features);
}

GridOptions Recipe::head_grid(const std::string& module, int64_t in_features) const {
  GridOptions out = grid;
  out.bits = head_bits;
  return resolved(out, module, in_features);
}

}  // namespace ballast
