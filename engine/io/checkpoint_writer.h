// Writes a checkpoint folder that appears whole or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"

namespace ballast {

/// Tensors are spooled to a temporary file in the output folder as they are added; `finish` writes the safetensors
/// file (shards with an index beyond `max_shard_bytes`), fsyncs and renames each, the index and config.json last.
/// Until then, and after any failure, the folder does not look loadable. A full disk or failed write is a
/// RuntimeFailure that says how much space was needed.
class CheckpointWriter {
 public:
  struct Options {
    bool overwrite = false;                         ///< replace an existing checkpoint in the folder
    uint64_t max_shard_bytes = uint64_t(5) << 30;
  };
  /// Creates the folder. Error if it holds a checkpoint and `overwrite` is not set, or is not writable.
  CheckpointWriter(std::filesystem::path folder, const Options& options);
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  ~CheckpointWriter();

  /// `dtype` in the safetensors spelling; `data` holds exactly elements × size bytes. Names must be unique.
  void add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape, const void* data);
  /// Copies a tensor of another checkpoint byte for byte.
  void copy(const Checkpoint& source, const StoredTensor& tensor);
  /// Copies a side file (tokenizer files, generation_config.json) if the source folder has it.
  void copy_file(const std::filesystem::path& source_folder, const std::string& file_name);
  /// Writes a small side file with the given content (quantize_config.json).
  void add_file(const std::string& file_name, const std::string& content);
  /// Writes everything; `config` becomes config.json.
  void finish(const nlohmann::json& config);

  uint64_t tensor_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ballast
