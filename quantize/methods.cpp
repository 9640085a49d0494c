#include "quantize/methods.h"

#include "quantize/affine_fit.h"
#include "quantize/methods/billm.h"
#include "quantize/methods/comq.h"
#include "quantize/methods/gptq.h"
#include "quantize/methods/rtn.h"
#include "quantize/methods/spqr.h"

namespace ballast {
namespace {

constexpr int kAffineBits[] = {2, 3, 4, 8};
constexpr int kOneBit[] = {1};

constexpr Method kMethods[] = {
    {.name = "rtn", .solve = solve_rtn, .uses_curvature = false, .bits = kAffineBits, .sweeps = -1},
    {.name = "gptq", .solve = solve_gptq, .bits = kAffineBits},
    {.name = "comq", .solve = solve_comq, .bits = kAffineBits, .has_column_order = false, .sweeps = 16},
    // Damping of the paper's near-lossless command.
    {.name = "spqr",
     .solve = solve_spqr,
     .bits = kAffineBits,
     .has_uniform_grid = false,
     .has_column_order = false,
     .one_curvature = true,
     .group_size = 16,
     .damping = 1,
     .sweeps = -1},
    {.name = "billm",
     .solve = solve_billm,
     .bits = kOneBit,
     .has_groups = false,
     .has_uniform_grid = false,
     .has_column_order = false,
     .one_curvature = true,
     .sweeps = -1},
};

}  // namespace

const Method& method_named(const std::string& name) {
  std::string known;
  for (const Method& method : kMethods) {
    if (name == method.name) return method;
    known += (known.empty() ? "" : ", ") + std::string(method.name);
  }
  throw Error("--method is \"" + name + "\", expected one of: " + known);
}

AffineMatrix empty_matrix(const LayerProblem& problem) {
  AffineMatrix matrix{.bits = problem.grid.bits,
                      .out_features = problem.out_features,
                      .in_features = problem.in_features,
                      .group_size = problem.grid.group_size};
  CHECK(matrix.group_size > 0 && matrix.in_features % matrix.group_size == 0);
  matrix.codes.resize(size_t(matrix.out_features * matrix.in_features));
  matrix.scales.resize(size_t(matrix.out_features * matrix.groups()));
  matrix.zero_points.resize(matrix.scales.size());
  return matrix;
}

void store_grid(AffineMatrix& matrix, int64_t row, int64_t group, const Grid& grid) {
  const size_t at = size_t(row * matrix.groups() + group);
  matrix.scales[at] = f32_to_f16(grid.scale);
  matrix.zero_points[at] = uint8_t(grid.zero_point);
}

}  // namespace ballast
