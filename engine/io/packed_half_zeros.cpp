#include "engine/io/packed_layouts.h"

namespace ballast {

HalfZeroGrid read_half_zero_grid(const PackedSource& source) {
  const std::vector<int32_t> grid = source.integers("weight_affine_grid", 2);
  if (grid[0] != 2 && grid[0] != 3 && grid[0] != 4)
    source.fail("weight_affine_grid", str("expected codes of 2, 3 or 4 bits, got ", grid[0]));
  if (grid[1] < 1) source.fail("weight_affine_grid", str("expected a group size from 1, got ", grid[1]));
  return {grid[0], grid[1]};
}

AffineMatrix read_half_zeros(const PackedSource& source) {
  source.check_encoding("weight_half_zeros", kHalfZeros);
  const auto [bits, group_size] = read_half_zero_grid(source);
  if (source.in_features % group_size != 0)
    source.fail("weight_affine_grid",
                str("expected a group size that divides ", source.in_features, " inputs, got ", group_size));
  AffineMatrix matrix{.bits = bits,
                      .out_features = source.out_features,
                      .in_features = source.in_features,
                      .group_size = group_size,
                      .half_zeros = true};
  matrix.codes = source.code_rows("weight", bits);
  matrix.scales = source.halves("weight_scale", {matrix.out_features, matrix.groups()});
  matrix.zero_points = source.code_stream("weight_half_zeros", matrix.out_features * matrix.groups(), bits);
  matrix.check(source.prefix);
  return matrix;
}

void write_half_zeros(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix) {
  matrix.check(prefix);
  const std::string weight = prefix + ".weight";
  write_code_rows(writer, weight, matrix.codes, matrix.out_features, matrix.bits);
  const int32_t grid[2] = {matrix.bits, int32_t(matrix.group_size)};
  writer.add(weight + "_affine_grid", "I32", {2}, grid);
  writer.add(weight + "_scale", "F16", {matrix.out_features, matrix.groups()}, matrix.scales.data());
  write_code_stream(writer, weight + "_half_zeros", matrix.zero_points, matrix.bits);
}

}  // namespace ballast
