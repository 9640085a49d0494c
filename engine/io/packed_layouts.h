// The layouts behind packed.h, one file each, and what they share.
#pragma once

#include <string>
#include <vector>

#include "engine/io/quantized.h"

namespace ballast {

/// A module being read: where its tensors are and what they have to be.
struct PackedSource {
  const Checkpoint& checkpoint;
  const PackedConfig& config;
  const std::string& prefix;
  int64_t out_features;
  int64_t in_features;

  std::string name(const char* suffix) const { return prefix + "." + suffix; }
  [[noreturn]] void fail(const char* suffix, const std::string& reason) const;
  /// The tensor, which must have two dimensions with the given size along one of them.
  const StoredTensor& matrix(const char* suffix, int axis, int64_t size) const;
  void expect(const StoredTensor& tensor, const char* suffix, const char* dtype,
              const std::vector<int64_t>& shape) const;
  /// Group size for `groups` groups per row; Error unless it agrees with the configuration.
  int64_t group_size(const char* suffix, int64_t groups) const;
  /// Error unless `bits` agrees with the configuration.
  void check_bits(const char* suffix, int bits) const;
  /// Scales as binary16, in the tensor's order. Error for a dtype that is not float and for unusable values.
  std::vector<uint16_t> scales(const StoredTensor& tensor, const char* suffix) const;
  /// An I32 [count] tensor.
  std::vector<int32_t> integers(const char* suffix, int64_t count) const;
  /// An F16 tensor as stored.
  std::vector<uint16_t> halves(const char* suffix, const std::vector<int64_t>& shape) const;
  /// One stream of codes: I32 [words].
  std::vector<uint8_t> code_stream(const char* suffix, int64_t count, int bits) const;
  /// A code per weight, each row beginning in a new word: I32 [out_features, words].
  std::vector<uint8_t> code_rows(const char* suffix, int bits) const;
  /// Error unless the configuration announces the encoding.
  void check_encoding(const char* suffix, const char* encoding) const;
  /// For each block of `group_size` columns the stored group that holds its scales. Natural order without the
  /// tensor.
  std::vector<int64_t> group_order(const char* suffix, int64_t group_size) const;
};

AffineMatrix read_gptq(const PackedSource& source);
AffineMatrix read_pack_quantized(const PackedSource& source);
void write_gptq(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                bool minus_one);
void write_pack_quantized(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                          bool symmetric);

/// weight_affine_grid of a module with half zero points.
struct HalfZeroGrid {
  int bits;
  int64_t group_size;
};
HalfZeroGrid read_half_zero_grid(const PackedSource& source);
AffineMatrix read_half_zeros(const PackedSource& source);
SparseOutlierMatrix read_sparse_outliers(const PackedSource& source);
ResidualBinaryMatrix read_residual_binary(const PackedSource& source);
void write_half_zeros(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix);
void write_sparse_outliers(CheckpointWriter& writer, const std::string& prefix,
                           const SparseOutlierMatrix& matrix);
void write_residual_binary(CheckpointWriter& writer, const std::string& prefix,
                           const ResidualBinaryMatrix& matrix);
/// Add what PackedSource::code_stream and code_rows read.
void write_code_stream(CheckpointWriter& writer, const std::string& name, const std::vector<uint8_t>& codes,
                       int bits);
void write_code_rows(CheckpointWriter& writer, const std::string& name, const std::vector<uint8_t>& codes,
                     int64_t rows, int bits);

/// Which version the stored zero points are: for symmetric weights (`symmetric`) all are 2^(bits-1) in v2 and
/// one less in v1, whatever the label says; else the label is believed. `tensor` is a qzeros.
PackedLayout gptq_version(const Checkpoint& checkpoint, const StoredTensor& tensor, int bits, bool symmetric,
                          PackedLayout label);

}  // namespace ballast
