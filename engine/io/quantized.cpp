#include "engine/io/quantized.h"

#include <algorithm>

#include "engine/io/json.h"
#include "engine/io/packed_bits.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

// The tensors that tell an encoding by being there.
constexpr const char* kHalfZeroMark = "weight_half_zeros";
constexpr const char* kOutlierMark = "weight_grid";
constexpr const char* kBinaryMark = "weight_block_size";

constexpr const char* kWeightParts[] = {"weight",
                                        "qweight",
                                        "qzeros",
                                        "scales",
                                        "g_idx",
                                        "weight_packed",
                                        "weight_scale",
                                        "weight_zero_point",
                                        "weight_shape",
                                        "weight_g_idx",
                                        "weight_affine_grid",
                                        "weight_half_zeros",
                                        "weight_grid",
                                        "weight_scale_codes",
                                        "weight_zero_codes",
                                        "weight_statistics",
                                        "weight_outlier_rows",
                                        "weight_outlier_columns",
                                        "weight_outliers",
                                        "weight_block_size",
                                        "weight_salient",
                                        "weight_coefficients"};

}  // namespace

void write_code_stream(CheckpointWriter& writer, const std::string& name, const std::vector<uint8_t>& codes,
                       int bits) {
  const int64_t count = int64_t(codes.size());
  std::vector<uint32_t> words(static_cast<size_t>(packed_words(count, bits)));
  pack_codes(codes.data(), count, bits, words.data());
  writer.add(name, "I32", {int64_t(words.size())}, words.data());
}

void write_code_rows(CheckpointWriter& writer, const std::string& name, const std::vector<uint8_t>& codes,
                     int64_t rows, int bits) {
  const int64_t columns = int64_t(codes.size()) / rows, row_words = packed_words(columns, bits);
  std::vector<uint32_t> words(static_cast<size_t>(rows * row_words));
  for (int64_t row = 0; row < rows; ++row)
    pack_codes(codes.data() + row * columns, columns, bits, words.data() + row * row_words);
  writer.add(name, "I32", {rows, row_words}, words.data());
}

bool has_quantized_weight(const Checkpoint& checkpoint, const std::string& prefix) {
  if (has_packed_weight(checkpoint, prefix)) return true;
  for (const char* mark : {kHalfZeroMark, kOutlierMark, kBinaryMark})
    if (checkpoint.find(prefix + "." + mark)) return true;
  return false;
}

QuantizedMatrix read_quantized(const Checkpoint& checkpoint, const std::string& prefix, int64_t out_features,
                               int64_t in_features) {
  const auto config = packed_config(checkpoint);
  if (!config)
    throw Error(str((checkpoint.folder() / "config.json").string(),
                    ": expected quantization_config for the packed tensors of ", shown(prefix, 200),
                    ", got none"));
  return read_quantized(checkpoint, *config, prefix, out_features, in_features);
}

QuantizedMatrix read_quantized(const Checkpoint& checkpoint, const PackedConfig& config,
                               const std::string& prefix, int64_t out_features, int64_t in_features) {
  CHECK(out_features > 0 && in_features > 0, prefix);
  const PackedSource source{checkpoint, config, prefix, out_features, in_features};
  const bool half_zeros = checkpoint.find(source.name(kHalfZeroMark)),
             outliers = checkpoint.find(source.name(kOutlierMark)),
             binary = checkpoint.find(source.name(kBinaryMark)),
             affine = has_packed_weight(checkpoint, prefix);
  if (int(half_zeros) + int(outliers) + int(binary) + int(affine) > 1)
    source.fail(half_zeros ? kHalfZeroMark
                : outliers ? kOutlierMark
                           : kBinaryMark,
                "is there beside a weight in another encoding");
  if (half_zeros) return read_half_zeros(source);
  if (outliers) return read_sparse_outliers(source);
  if (binary) return read_residual_binary(source);
  return read_packed(checkpoint, config, prefix, out_features, in_features);
}

PackedLayout write_quantized(CheckpointWriter& writer, const std::string& prefix,
                             const QuantizedMatrix& matrix, PackedLayout affine, bool symmetric) {
  if (const auto* outliers = std::get_if<SparseOutlierMatrix>(&matrix)) {
    write_sparse_outliers(writer, prefix, *outliers);
  } else if (const auto* binary = std::get_if<ResidualBinaryMatrix>(&matrix)) {
    write_residual_binary(writer, prefix, *binary);
  } else {
    const AffineMatrix& grid = std::get<AffineMatrix>(matrix);
    if (grid.half_zeros) {
      write_half_zeros(writer, prefix, grid);
      return PackedLayout::ballast;
    }
    const bool fits = layout_holds(affine, grid.bits, grid.out_features, grid.in_features);
    const PackedLayout layout = fits ? affine : PackedLayout::pack_quantized;
    write_packed(writer, prefix, grid, layout, symmetric);
    return layout;
  }
  return PackedLayout::ballast;
}

std::string_view encoding_name(const QuantizedMatrix& matrix) {
  if (std::holds_alternative<SparseOutlierMatrix>(matrix)) return kSparseOutliers;
  if (std::holds_alternative<ResidualBinaryMatrix>(matrix)) return kResidualBinary;
  if (std::get<AffineMatrix>(matrix).half_zeros) return kHalfZeros;
  return {};
}

bool is_weight_part(std::string_view suffix) {
  return std::find(std::begin(kWeightParts), std::end(kWeightParts), suffix) != std::end(kWeightParts);
}

}  // namespace ballast
