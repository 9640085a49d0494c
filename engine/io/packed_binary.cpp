#include <algorithm>

#include "engine/io/packed_layouts.h"

namespace ballast {

ResidualBinaryMatrix read_residual_binary(const PackedSource& source) {
  source.check_encoding("weight_block_size", kResidualBinary);
  ResidualBinaryMatrix matrix{.out_features = source.out_features, .in_features = source.in_features};
  matrix.block_size = source.integers("weight_block_size", 1)[0];
  if (matrix.block_size < 1)
    source.fail("weight_block_size", str("expected at least 1, got ", matrix.block_size));
  matrix.codes = source.code_rows("weight", 2);
  matrix.salient = source.code_stream("weight_salient", source.in_features, 1);
  matrix.coefficients = source.halves("weight_coefficients", {source.out_features, matrix.blocks(),
                                                              int64_t(ResidualBinaryMatrix::kCoefficients)});
  matrix.check(source.prefix);
  return matrix;
}

void write_residual_binary(CheckpointWriter& writer, const std::string& prefix,
                           const ResidualBinaryMatrix& matrix) {
  matrix.check(prefix);
  const std::string weight = prefix + ".weight";
  // A block longer than the row is the row.
  const int32_t block_size = int32_t(std::min<int64_t>(matrix.block_size, INT32_MAX));
  write_code_rows(writer, weight, matrix.codes, matrix.out_features, 2);
  writer.add(weight + "_block_size", "I32", {1}, &block_size);
  write_code_stream(writer, weight + "_salient", matrix.salient, 1);
  writer.add(weight + "_coefficients", "F16",
             {matrix.out_features, matrix.blocks(), int64_t(ResidualBinaryMatrix::kCoefficients)},
             matrix.coefficients.data());
}

}  // namespace ballast
