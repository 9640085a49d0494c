// Stored form of a module's weight in any encoding. Affine weights with whole zero points have published layouts
// (packed.h). The other encodings have none and are stored as follows, bit for bit what the canonical forms in
// kernels/encodings hold; quantization_config names them (quant_method "ballast", see below).
//
//   G = in_features / group_size, T = ceil(out_features / 16), N outliers in all, B = ceil(in_features / block_size)
//
// half zero points
//   weight                  I32 [out_features, ceil(in_features*bits/32)]   codes, each row in words of its own
//   weight_affine_grid      I32 [2]                                         bits, group_size
//   weight_scale            F16 [out_features, G]
//   weight_half_zeros       I32 [ceil(out_features*G*bits/32)]              zero points, one stream over [out_features, G]
// sparse outliers
//   weight                  I32 [out_features, ceil(in_features*bits/32)]   codes, each row in words of its own
//   weight_grid             I32 [3]                                         bits, stat_bits, group_size
//   weight_scale_codes      I32 [ceil(out_features*G*stat_bits/32)]         one stream over [out_features, G]
//   weight_zero_codes       I32, as weight_scale_codes
//   weight_statistics       F16 [T, G, 4]      scale_low, scale_step, zero_low, zero_step of 16 rows' groups
//   weight_outlier_rows     I32 [out_features + 1]                          where each row's outliers begin
//   weight_outlier_columns  U16 [N]                                         ascending within a row
//   weight_outliers         F16 [N]
// residual binary
//   weight                  I32 [out_features, ceil(in_features*2/32)]      codes, each row in words of its own
//   weight_block_size       I32 [1]
//   weight_salient          I32 [ceil(in_features/32)]                      a bit per column
//   weight_coefficients     F16 [out_features, B, 7]                        order: ResidualBinaryMatrix::Coefficient
//
// Bits are packed low first, as in packed_bits.h. The codes are named `weight` with purpose: a program that does not
// know the encoding then meets a tensor of the wrong type and shape and stops, where it would fill a tensor
// that it misses with random numbers and go on.
//
// quantization_config: {"quant_method": "ballast", "version": 1, "encodings": some of ["half_zero_points",
// "sparse_outliers", "residual_binary"], "bits", "group_size", "sym": what was asked for, for people; the tensors decide}. Affine modules
// in such a folder are in any form of packed.h.
#pragma once

#include <string>
#include <string_view>

#include "engine/io/packed.h"
#include "kernels/encodings/quantized_matrix.h"

namespace ballast {

inline constexpr const char* kHalfZeros = "half_zero_points";
inline constexpr const char* kSparseOutliers = "sparse_outliers";
inline constexpr const char* kResidualBinary = "residual_binary";

/// True when module `prefix` is stored in a quantized encoding.
bool has_quantized_weight(const Checkpoint& checkpoint, const std::string& prefix);

/// Reads the weight of module `prefix` whatever its encoding. Error when tensors contradict each other, the
/// expected shape or quantization_config, or hold numbers out of range.
QuantizedMatrix read_quantized(const Checkpoint& checkpoint, const std::string& prefix, int64_t out_features,
                               int64_t in_features);
/// The same with the configuration at hand, for many modules.
QuantizedMatrix read_quantized(const Checkpoint& checkpoint, const PackedConfig& config,
                               const std::string& prefix, int64_t out_features, int64_t in_features);

/// Writes the tensors of `matrix` under `prefix` and returns the layout used: for an affine matrix with whole zero
/// points `affine`, or pack_quantized where that cannot hold its shape; else ballast. For `symmetric` see write_packed.
PackedLayout write_quantized(CheckpointWriter& writer, const std::string& prefix,
                             const QuantizedMatrix& matrix, PackedLayout affine, bool symmetric);

/// Name of the encoding in quantization_config; empty for one whose layout is published.
std::string_view encoding_name(const QuantizedMatrix& matrix);

/// True when `suffix` ("qweight") names a tensor that some stored form of a weight has.
bool is_weight_part(std::string_view suffix);

}  // namespace ballast
