// The checkpoint a quantization run writes: packed modules, biases, everything else copied, and the config
// that says so.
#pragma once

#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/io/activation_sites.h"
#include "engine/io/checkpoint_writer.h"
#include "engine/io/quantized.h"
#include "engine/nn/linear.h"
#include "quantize/recipe.h"
#include "quantize/report.h"

namespace ballast {

/// Files beside the weights that are copied where the source has them.
inline constexpr const char* kSideFiles[] = {
    "tokenizer.json",  "tokenizer_config.json",   "vocab.json",
    "merges.txt",      "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "generation_config.json",  "preprocessor_config.json"};

class QuantizedOutput {
 public:
  QuantizedOutput(const Checkpoint& source, CheckpointWriter& writer, const Recipe& recipe);

  /// `values` as the file will hold them: rounded to the dtype that tensors beside `module`.weight have.
  std::vector<float> stored(const std::string& module, std::vector<float> values) const;

  void add_matrix(const std::string& module, const QuantizedMatrix& matrix);
  /// `suffix` includes its dot: ".bias", ".compensation", …
  void add_vector(const std::string& module, const std::string& suffix, std::span<const float> values,
                  std::vector<int64_t> shape);
  void add_sites(const ActivationSites& sites) { sites_.insert(sites.begin(), sites.end()); }
  /// Of all tensors; known once finished.
  uint64_t tensor_bytes() const { return tensor_bytes_; }
  /// Copies every tensor not replaced, the tokenizer's files, and writes the configs.
  void finish(const QuantizeReport& report, bool biases_added);

 private:
  std::string vector_dtype(const std::string& module) const;

  const Checkpoint& source_;
  CheckpointWriter& writer_;
  const Recipe& recipe_;
  PackedLayout layout_;
  std::set<std::string> replaced_;  ///< tensor names
  std::set<std::string> modules_;
  std::set<std::string> encodings_;  ///< written ones that have no published layout
  ActivationSites sites_;
  uint64_t tensor_bytes_ = 0;
  std::vector<PackedException> exceptions_;
};

}  // namespace ballast
