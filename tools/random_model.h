// OPT models of the published shapes with random weights: what speed and memory are measured on where no
// checkpoint is at hand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/checkpoint_writer.h"
#include "kernels/backend.h"

namespace ballast {

struct RandomModel {
  std::string shape;       ///< a name that random_shapes() lists
  int64_t layers = 0;      ///< cut to this many blocks; 0: all
  int bits = 16;           ///< of the blocks' matrices: 16 (binary16), or 2, 3, 4, 8 (codes and scales)
  int64_t group_size = 0;  ///< columns that share a scale; 0: the whole row
  int head_bits = 0;       ///< of the head, which is the embedding too; 0: 8 where the blocks are quantized
  double relu_zeros = 0;   ///< wanted share of zeros in fc2's input; 0: leave it at about a half
  uint64_t seed = 0;

  int head() const { return head_bits ? head_bits : bits == 16 ? 16 : 8; }

  /// Error for an unknown shape, width or group size.
  void check() const;
};

/// "tiny, 125m, …"
std::string random_shapes();
/// out_features and in_features of a shape's linear layers: the square ones, fc1, fc2, the head.
std::vector<std::pair<int64_t, int64_t>> linear_shapes(const std::string& shape);

/// Writes a loadable folder: config.json, safetensors, and a byte-level tokenizer of 256 bytes and OPT's special
/// tokens. Weights are normal with a spread that keeps activations near 1, quantized ones are drawn as codes
/// and scales. One tensor is in memory at a time. The blocks of a model cut to fewer layers are the first of
/// the whole model's. Zeros in fc2's input come from a shift of fc1's bias, in proportion to the spread of the
/// row's weights. The bytes do not depend on the backend, whose threads draw them. Returns the bytes of all
/// tensors.
uint64_t write_random_model(Backend& backend, const RandomModel& model, const std::filesystem::path& folder,
                            const CheckpointWriter::Options& options);

}  // namespace ballast
