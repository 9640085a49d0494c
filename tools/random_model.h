// OPT models of the published shapes with random weights: what speed and memory are measured on where no
// checkpoint is at hand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace ballast {

struct RandomModel {
  std::string shape;       ///< a name that random_shapes() lists
  int64_t layers = 0;      ///< cut to this many blocks; 0: all
  int bits = 16;           ///< of the blocks' matrices: 16 (binary16), or 2, 3, 4, 8 (codes and scales)
  int64_t group_size = 0;  ///< columns that share a scale; 0: the whole row
  uint64_t seed = 0;

  /// Error for an unknown shape, width or group size.
  void check() const;
};

/// "tiny, 125m, …"
std::string random_shapes();

/// Writes a loadable folder: config.json, safetensors, and a byte-level tokenizer of 256 bytes and OPT's special
/// tokens. Weights are normal with a spread that keeps activations near 1, quantized ones are drawn as codes
/// and scales. One tensor is in memory at a time. The blocks of a model cut to fewer layers are the first of
/// the whole model's. Returns the bytes of all tensors.
uint64_t write_random_model(const RandomModel& model, const std::filesystem::path& folder, bool overwrite);

}  // namespace ballast
