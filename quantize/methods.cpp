#include "quantize/methods.h"

#include <algorithm>

#include "quantize/affine_fit.h"
#include "quantize/methods/billm.h"
#include "quantize/methods/comq.h"
#include "quantize/methods/gptq.h"
#include "quantize/methods/rtn.h"
#include "quantize/methods/spqr.h"

namespace ballast {
namespace {

constexpr int kAffineBits[] = {2, 3, 4, 6, 8};
constexpr int kSpqrBits[] = {2, 3, 4, 8};
constexpr int kOneBit[] = {1};

double affine_bits(int64_t, int64_t, const GridOptions& grid, const MethodOptions&) {
  return AffineMatrix{.bits = stored_code_bits(grid.bits), .group_size = grid.group_size}.bits_per_weight();
}

// Without outliers.
double spqr_bits(int64_t rows, int64_t columns, const GridOptions& grid, const MethodOptions& options) {
  SparseOutlierMatrix matrix{.bits = grid.bits,
                             .stat_bits = options.stat_bits,
                             .out_features = rows,
                             .in_features = columns,
                             .group_size = grid.group_size};
  const double groups = double(matrix.groups());
  return matrix.bits + (2.0 * matrix.stat_bits * double(rows) * groups +
                        64.0 * double(matrix.tiles()) * groups + 32.0 * double(rows + 1)) /
                           (double(rows) * double(columns));
}

double billm_bits(int64_t rows, int64_t columns, const GridOptions&, const MethodOptions& options) {
  const ResidualBinaryMatrix matrix{
      .out_features = rows, .in_features = columns, .block_size = std::min(options.block_size, columns)};
  const double coefficients = double(rows * matrix.blocks() * ResidualBinaryMatrix::kCoefficients);
  return 2 + (double(columns) + 16 * coefficients) / (double(rows) * double(columns));
}

constexpr Method kMethods[] = {
    {.name = "rtn",
     .solve = solve_rtn,
     .stored_bits = affine_bits,
     .uses_curvature = false,
     .bits = kAffineBits,
     .sweeps = -1},
    {.name = "gptq", .solve = solve_gptq, .stored_bits = affine_bits, .bits = kAffineBits},
    {.name = "comq",
     .solve = solve_comq,
     .stored_bits = affine_bits,
     .bits = kAffineBits,
     .has_column_order = false,
     .sweeps = 16},
    {.name = "spqr",
     .solve = solve_spqr,
     .stored_bits = spqr_bits,
     .bits = kSpqrBits,
     .has_uniform_grid = false,
     .has_column_order = false,
     .one_curvature = true,  // runs of rows would end inside a tile of statistics
     .group_size = 16,
     .sweeps = -1},
    {.name = "billm",
     .solve = solve_billm,
     .stored_bits = billm_bits,
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
  AffineMatrix matrix{.bits = stored_code_bits(problem.grid.bits),
                      .out_features = problem.out_features,
                      .in_features = problem.in_features,
                      .group_size = problem.grid.group_size};
  matrix.half_zeros = problem.grid.half_zeros();
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
