// Weight encodings as ops see them: shape facts plus one blob in the layout of the backend that packed it.
// Only the backend reads the blob; everybody else passes it along. A canonical form gives its view, still
// without data, as facts(). To add an encoding: a struct here, a canonical form beside it, a
// `run(const Linear<…>&)`, `run(const Embedding<…>&)` and `pack` in Backend, and an alternative in
// engine/core's Weight.
//
// bits_per_weight() is what a file stores for one weight on average, scales and the like included.
#pragma once

#include "kernels/view.h"

namespace ballast {

/// Float weights kept as stored: f32, f16 or bf16.
struct DenseView {
  DType dtype = DType::f32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  TensorView data;  ///< u8 blob of Backend::packed_bytes bytes, 64-byte aligned

  double bits_per_weight() const { return double(8 * size_of(dtype)); }
};

/// Affine grouped weights kept as codes; see encodings/affine.h for the meaning.
struct AffineView {
  int bits = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;
  bool half_zeros = false;  ///< AffineMatrix::half_zeros
  /// Packed so that one token's zero activations cost nothing: their columns are not read. Below 8 bits only.
  bool by_columns = false;
  TensorView data;  ///< u8 blob of Backend::packed_bytes bytes, 64-byte aligned

  /// Codes, a 16-bit scale and a `bits`-wide zero point per group.
  double bits_per_weight() const { return bits + double(16 + bits) / double(group_size); }
};

/// Small affine groups and single weights in 16 bits; see encodings/sparse_outliers.h.
struct SparseOutlierView {
  /// Rows that share the second level of the scales' and zero points' quantization.
  static constexpr int64_t kStatRows = 16;

  int bits = 0;
  int stat_bits = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;
  int64_t outliers = 0;  ///< in the whole matrix
  TensorView data;       ///< u8 blob of Backend::packed_bytes bytes, 64-byte aligned

  /// Share of the weights that are outliers.
  double outlier_share() const { return double(outliers) / (double(out_features) * double(in_features)); }
  /// Codes, both levels of statistics, outliers with their columns and row offsets.
  double bits_per_weight() const {
    const double rows = double(out_features), groups = double(in_features / group_size);
    const double tiles = double((out_features + kStatRows - 1) / kStatRows);
    const double extra =
        2.0 * stat_bits * rows * groups + 64 * tiles * groups + 32 * (rows + 1) + 32 * double(outliers);
    return bits + extra / (rows * double(in_features));
  }
};

/// Signs and coefficients of blocks; see encodings/residual_binary.h.
struct ResidualBinaryView {
  static constexpr int64_t kCoefficients = 7;  ///< per row and block

  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t block_size = 0;  ///< columns; the last block may be shorter
  TensorView data;         ///< u8 blob of Backend::packed_bytes bytes, 64-byte aligned

  int64_t blocks() const { return (in_features + block_size - 1) / block_size; }
  /// Two bits a weight, the salient columns, the coefficients.
  double bits_per_weight() const {
    return 2 + 1 / double(out_features) + 16.0 * kCoefficients * double(blocks()) / double(in_features);
  }
};

}  // namespace ballast
