// Stored layouts of affine weights: GPTQ v1 and v2, compressed-tensors pack-quantized. Bits are packed here
// and nowhere else. G = in_features / group_size.
//
// GPTQ
//   qweight            I32 [in_features*bits/32, out_features]         codes, packed along in_features
//   qzeros             I32 [G, out_features*bits/32]                   zero points, packed along out_features
//   scales             F16 [G, out_features]
//   g_idx              I32 [in_features]                               group of each column; may be missing
// pack-quantized
//   weight_packed      I32 [out_features, ceil(in_features*bits/32)]   codes, packed along in_features
//   weight_scale       F16 [out_features, G]
//   weight_zero_point  I32 [ceil(out_features*bits/32), G]             packed along out_features
//   weight_shape       I64 [2]                                         out_features, in_features
//
// Codes are packed low bits first; those of 3 bits straddle words. GPTQ v1 stores zero point - 1. Symmetric
// pack-quantized weights have no weight_zero_point. Its codes and zero points are signed numbers plus
// 2^(bits-1): the same unsigned numbers that AffineMatrix holds. BF16 and F32 scales are rounded to binary16.
//
// compressed-tensors before 0.18 put ten 3-bit codes in a word instead. That form is read too, told by the
// word count (where both fit, by the version in quantization_config), and never written.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"
#include "engine/io/checkpoint_writer.h"
#include "kernels/encodings/affine.h"

namespace ballast {

enum class PackedLayout {
  gptq_v1,
  gptq_v2,
  pack_quantized,
  ballast,  ///< encodings that have no published layout (quantized.h); affine modules beside them in any form
};

/// True when the layout can hold the matrix (gptq: in_features*bits and out_features*bits divide by 32).
bool layout_holds(PackedLayout layout, int bits, int64_t out_features, int64_t in_features);

/// What `quantization_config` in config.json says, as far as reading needs it. Single modules of a GPTQ
/// folder may be stored in pack-quantized form where GPTQ cannot hold their shape; their tensors' names tell.
struct PackedConfig {
  PackedLayout layout = PackedLayout::gptq_v2;
  int bits = 0;
  int64_t group_size = 0;  ///< -1: one group per row
  bool symmetric = false;
  std::vector<std::string> encodings;  ///< of `ballast`: those without a published layout that occur
  bool mixed = false;  ///< modules differ: bits and group size come from each module's tensors
  /// By module, the share of its inputs that was exactly 0 in calibration, where the folder tells.
  std::map<std::string, double> zero_inputs;
  /// Pack-quantized by compressed-tensors before 0.18.
  bool older_3_bit = false;
  /// The label said v1 and the tensors are v2, or the reverse; `layout` is what they are.
  bool mislabeled = false;
};
/// In `meta` of quantization_config: PackedConfig::zero_inputs.
inline constexpr char kZeroInputs[] = "zero_inputs";
/// Empty for a float checkpoint. Error on an unknown or contradictory quantization_config. Without one in
/// config.json a `quantize_config.json` counts, as older GPTQ folders have it.
std::optional<PackedConfig> packed_config(const Checkpoint& checkpoint);
/// As above, for the quantization_config object alone; `what` is its place in messages.
std::optional<PackedConfig> parse_packed_config(const nlohmann::json& quantization_config,
                                                const std::string& what);

/// A module that differs from what the configuration says of all.
struct PackedException {
  std::string module;
  PackedLayout layout = PackedLayout::gptq_v2;
  int bits = 0;
  int64_t group_size = 0;
};
/// The `quantization_config` that other tools and packed_config() read. `ignored` names linear modules kept
/// in float: `ignore` of pack-quantized, `dynamic` with "-:" of GPTQ.
nlohmann::json packed_config_json(const PackedConfig& config,
                                  const std::vector<PackedException>& exceptions = {},
                                  const std::vector<std::string>& ignored = {});

/// True when `prefix` (a module name such as "model.decoder.layers.0.fc1") is stored as an affine weight.
bool has_packed_weight(const Checkpoint& checkpoint, const std::string& prefix);

/// A module stored as an affine weight, also one with half zero points, with the shape that its tensors tell.
struct PackedModule {
  std::string name;
  int64_t out_features = 0, in_features = 0;
};
/// All of them, in the order of the checkpoint's tensors. Error where a shape cannot be told.
std::vector<PackedModule> packed_modules(const Checkpoint& checkpoint, const PackedConfig& config);

/// Reads the affine weight of module `prefix`. The layout, bits and group size come from the tensors and
/// quantization_config together; contradictions, g_idx out of range, bad shapes, zero, NaN, infinite or
/// subnormal scales are Errors. `g_idx` must keep each group's columns together (group_size neighbours each),
/// in any order of groups; act-order without static groups is an Error.
AffineMatrix read_packed(const Checkpoint& checkpoint, const std::string& prefix, int64_t out_features,
                         int64_t in_features);
/// As above with the folder's configuration read once by the caller.
AffineMatrix read_packed(const Checkpoint& checkpoint, const PackedConfig& config, const std::string& prefix,
                         int64_t out_features, int64_t in_features);

/// Writes the tensors of `matrix` under `prefix`. Error when the layout cannot hold it or a scale is
/// subnormal (which no reader accepts). `symmetric` promises that all zero points are 2^(bits-1), and then
/// pack-quantized leaves them out as its other readers expect.
void write_packed(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                  PackedLayout layout, bool symmetric = false);

/// Writes a module in the GPTQ v2 layout from what its tensors hold: `qweight` [in_features*bits/32, out_features],
/// binary16 `scales` [G, out_features] and one zero point for all.
void write_gptq_words(CheckpointWriter& writer, const std::string& prefix, const AffineView& facts,
                      const uint32_t* qweight, const uint16_t* scales, uint8_t zero_point);

}  // namespace ballast
