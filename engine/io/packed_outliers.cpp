#include <cstring>

#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

/// bits, stat_bits and group_size of a matrix without content.
SparseOutlierMatrix read_grid(const PackedSource& source) {
  const std::vector<int32_t> grid = source.integers("weight_grid", 3);
  const int bits = grid[0], stat_bits = grid[1];
  const int64_t group_size = grid[2];
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    source.fail("weight_grid", str("expected codes of 2, 3, 4 or 8 bits, got ", bits));
  if (stat_bits < 1 || stat_bits > 8)
    source.fail("weight_grid", str("expected statistics of 1 to 8 bits, got ", stat_bits));
  if (group_size < 1 || source.in_features % group_size != 0)
    source.fail("weight_grid",
                str("expected a group size that divides ", source.in_features, " inputs, got ", group_size));
  return {.bits = bits,
          .stat_bits = stat_bits,
          .out_features = source.out_features,
          .in_features = source.in_features,
          .group_size = group_size};
}

}  // namespace

SparseOutlierMatrix read_sparse_outliers(const PackedSource& source) {
  source.check_encoding("weight_grid", kSparseOutliers);
  SparseOutlierMatrix matrix = read_grid(source);
  const int64_t groups = matrix.groups(), out_features = source.out_features;
  matrix.codes = source.code_rows("weight", matrix.bits);
  matrix.scale_codes = source.code_stream("weight_scale_codes", out_features * groups, matrix.stat_bits);
  matrix.zero_codes = source.code_stream("weight_zero_codes", out_features * groups, matrix.stat_bits);
  matrix.stats = source.halves("weight_statistics", {matrix.tiles(), groups, 4});

  // A negative offset becomes one beyond every list, which check() refuses.
  for (int32_t offset : source.integers("weight_outlier_rows", out_features + 1))
    matrix.outlier_rows.push_back(uint32_t(offset));
  const StoredTensor& columns = source.checkpoint.require(source.name("weight_outlier_columns"));
  if (columns.shape.size() != 1)
    source.fail("weight_outlier_columns", str("expected 1 dimension, got ", columns.shape.size()));
  const int64_t count = columns.shape[0];
  source.expect(columns, "weight_outlier_columns", "U16", {count});
  matrix.outlier_columns.resize(static_cast<size_t>(count));
  if (count > 0) std::memcpy(matrix.outlier_columns.data(), source.checkpoint.bytes(columns), columns.bytes);
  matrix.outlier_values = source.halves("weight_outliers", {count});
  matrix.check(source.prefix);
  return matrix;
}

void write_sparse_outliers(CheckpointWriter& writer, const std::string& prefix,
                           const SparseOutlierMatrix& matrix) {
  matrix.check(prefix);
  const int64_t count = int64_t(matrix.outlier_columns.size());
  if (count > INT32_MAX) throw Error(str(prefix, ": ", count, " outliers, expected at most ", INT32_MAX));
  const std::string weight = prefix + ".weight";
  write_code_rows(writer, weight, matrix.codes, matrix.out_features, matrix.bits);
  const int32_t grid[3] = {matrix.bits, matrix.stat_bits, int32_t(matrix.group_size)};
  writer.add(weight + "_grid", "I32", {3}, grid);
  write_code_stream(writer, weight + "_scale_codes", matrix.scale_codes, matrix.stat_bits);
  write_code_stream(writer, weight + "_zero_codes", matrix.zero_codes, matrix.stat_bits);
  writer.add(weight + "_statistics", "F16", {matrix.tiles(), matrix.groups(), 4}, matrix.stats.data());
  writer.add(weight + "_outlier_rows", "I32", {matrix.out_features + 1}, matrix.outlier_rows.data());
  writer.add(weight + "_outlier_columns", "U16", {count}, matrix.outlier_columns.data());
  writer.add(weight + "_outliers", "F16", {count}, matrix.outlier_values.data());
}

}  // namespace ballast
