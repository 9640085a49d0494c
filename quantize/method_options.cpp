// Which choices of a recipe a method has.
#include <algorithm>

#include "quantize/methods.h"

namespace ballast {
namespace {

void refuse(bool set, const Method& method, const char* flag, const char* why) {
  if (set) throw Error(str(flag, " makes no sense with --method ", method.name, ": ", why));
}

// Flags of one method only: each is refused elsewhere once it differs from what it is without the flag.
void check_own_options(const Method& method, const MethodOptions& options) {
  const MethodOptions standard;
  const struct {
    bool set;
    const char* flag;
    const char* owner;
    const char* why;
  } owned[] = {
      {options.per_layer, "--scale-scope layer", "comq", "only comq can share a scale among all rows"},
      {options.outlier_threshold != standard.outlier_threshold, "--outlier-threshold", "spqr",
       "only spqr keeps single weights in 16 bits"},
      {options.stat_bits != standard.stat_bits, "--stat-bits", "spqr",
       "only spqr quantizes its scales and zero points"},
      {options.block_size != standard.block_size, "--block-size", "billm",
       "only billm has blocks; --group-size is for the others"},
  };
  const std::string name = method.name;
  for (const auto& option : owned)
    refuse(option.set && name != option.owner, method, option.flag, option.why);
}

void check_descent(const Method& method, const Recipe& recipe) {
  const MethodOptions& options = recipe.options;
  if (options.sweeps < -1) throw Error(str("--sweeps is ", options.sweeps, ", expected 0 or more"));
  if (method.sweeps > 0 && options.sweeps == 0)
    throw Error(
        str("--sweeps is 0: --method ", method.name, " chooses its codes in sweeps, expected 1 or more"));
  const bool sweeps = options.sweeps > 0 || (options.sweeps == -1 && method.sweeps > 0);
  refuse(options.sweeps > 0 && method.sweeps < 0, method, "--sweeps",
         method.uses_curvature ? "coordinate descent needs one plain scale and zero point per group"
                               : "it looks at no inputs; --method comq sweeps from the weights alone");
  refuse(options.greedy_order && !sweeps, method, "--greedy-order",
         "it orders the sweeps of coordinate descent; add --sweeps");
  refuse(!options.anneal && !sweeps, method, "--no-anneal", "nothing sweeps; add --sweeps");
  refuse(!options.refit_scales && !sweeps, method, "--no-refit-scales",
         "scales are refitted in the sweeps of coordinate descent only");
  refuse(!options.unbiased_scales && !sweeps && method.has_uniform_grid, method, "--no-unbiased-scales",
         "scales stay as they were fitted; only those that sweeps refit are biased");
  if (options.per_layer && recipe.curvature == CurvatureKind::guided && recipe.curvature_groups > 1)
    throw Error(
        "--scale-scope layer makes no sense with --curvature guided and more than one of --curvature-groups: "
        "runs "
        "of rows with a curvature of their own are solved apart");
  if (options.per_layer && recipe.grid.group_size > 0)
    throw Error(
        "--scale-scope layer makes no sense with --group-size: groups are there to have scales of their own");
}

}  // namespace

bool Method::has_width(int width) const {
  return std::find(bits.begin(), bits.end(), width) != bits.end();
}

std::string Method::widths() const {
  if (bits.size() == 1) return str("expected ", bits.front(), ", the only width of --method ", name);
  std::string list = "expected ";
  for (size_t i = 0; i < bits.size(); ++i)
    list += str(i == 0 ? "" : i + 1 == bits.size() ? " or " : ", ", bits[i]);
  return list;
}

void check_options(const Method& method, const Recipe& recipe) {
  const MethodOptions& options = recipe.options;
  check_own_options(method, options);
  check_descent(method, recipe);
  if (!(options.outlier_threshold > 0))
    throw Error(str("--outlier-threshold is ", options.outlier_threshold,
                    ", expected more than 0 (inf: no outliers)"));
  if (options.stat_bits < 1 || options.stat_bits > 8)
    throw Error(str("--stat-bits is ", options.stat_bits, ", expected 1 to 8"));
  if (options.block_size < 8)
    throw Error(str("--block-size is ", options.block_size, ", expected 8 or more"));
  if (!method.has_groups) {
    const char* why = "rows keep their coefficients in blocks of --block-size columns";
    refuse(recipe.grid.group_size > 0, method, "--group-size", why);
    for (const LayerOverride& rule : recipe.overrides)
      refuse(rule.group_size > 0, method, "a group size in --override", why);
  }
  if (!method.has_uniform_grid) {
    const char* why = "it finds its own levels";
    refuse(recipe.grid.symmetric, method, "--symmetric", why);
    refuse(recipe.grid.half_zero_bits > 0, method, "--zero-points half", why);
    refuse(recipe.grid.clip_search, method, "--clip-search", why);
    refuse(recipe.grid.range_shrink != 1, method, "--range-shrink", why);
  }
  if (method.uses_curvature && !method.has_column_order) {
    const char* why = method.sweeps > 0 ? "it sweeps in an order of its own (--greedy-order)"
                                        : "its groups are fitted as their columns come";
    refuse(recipe.act_order, method, "--act-order", why);
    refuse(recipe.static_groups, method, "--static-groups", why);
  }
}

}  // namespace ballast
