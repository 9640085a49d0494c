// Stored layouts of affine weights: GPTQ v1 and v2, compressed-tensors pack-quantized. Bits are packed here and
// nowhere else.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/io/checkpoint.h"
#include "engine/io/checkpoint_writer.h"
#include "kernels/encodings/affine.h"

namespace ballast {

enum class PackedLayout { gptq_v1, gptq_v2, pack_quantized };

/// True when the layout can hold the matrix (gptq: in_features*bits and out_features*bits divide by 32).
bool layout_holds(PackedLayout layout, int bits, int64_t out_features, int64_t in_features);

/// What `quantization_config` in config.json says, as far as reading needs it.
struct PackedConfig {
  PackedLayout layout = PackedLayout::gptq_v2;
  int bits = 0;
  int64_t group_size = 0;  ///< -1: one group per row
  bool symmetric = false;
};
/// Empty for a float checkpoint. Error on an unknown or contradictory quantization_config.
std::optional<PackedConfig> packed_config(const Checkpoint& checkpoint);

/// True when `prefix` (a module name such as "model.decoder.layers.0.fc1") is stored as an affine weight.
bool has_packed_weight(const Checkpoint& checkpoint, const std::string& prefix);

/// Reads the affine weight of module `prefix`. The layout, bits and group size come from the tensors and
/// quantization_config together; contradictions, g_idx out of range, bad shapes, zero, NaN, infinite or subnormal
/// scales are Errors. `g_idx` must be the natural order (column / group_size) or a static-group order that equals it.
AffineMatrix read_packed(const Checkpoint& checkpoint, const std::string& prefix, int64_t out_features,
                         int64_t in_features);

/// Writes the tensors of `matrix` under `prefix`. Error when the layout cannot hold it.
void write_packed(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                  PackedLayout layout);

}  // namespace ballast
