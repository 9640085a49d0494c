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

/// Tensors are spooled to a temporary folder inside the output folder as they are added; `finish` writes the
/// safetensors file (shards with an index beyond `max_shard_bytes`), fsyncs and renames each, the index and
/// config.json last. Until then, and after any failure, the folder does not look loadable (a checkpoint that
/// was there stays whole until everything new is on the disk). A full disk or failed write is a
/// RuntimeFailure that says how much space was needed. The same calls give the same bytes. Without `finish`
/// the destructor removes what was written; what a killed run left behind is removed by the next writer.
class CheckpointWriter {
 public:
  struct Options {
    bool overwrite = false;  ///< replace an existing checkpoint in the folder
    uint64_t max_shard_bytes = uint64_t(5) << 30;
    bool durable = true;  ///< false: no fsync, for a folder that nobody keeps
  };
  /// Creates the folder. Error if it holds a checkpoint and `overwrite` is not set, is not writable, or is
  /// being written by another process.
  CheckpointWriter(std::filesystem::path folder, const Options& options);
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  ~CheckpointWriter();

  /// `dtype` in the safetensors spelling; `data` holds exactly elements × size bytes. Names must be unique.
  void add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
           const void* data);
  /// Copies a tensor of another checkpoint byte for byte.
  void copy(const Checkpoint& source, const StoredTensor& tensor);
  /// Copies a side file if the source folder has it.
  void copy_file(const std::filesystem::path& source_folder, const std::string& file_name);
  /// Copies what belongs to a model beside its weights: the files of tokenizer and preprocessor,
  /// generation_config.json.
  void copy_side_files(const std::filesystem::path& source_folder);
  /// Writes a small side file with the given content (quantize_config.json).
  void add_file(const std::string& file_name, const std::string& content);
  /// Writes everything; `config` becomes config.json.
  void finish(const nlohmann::json& config);

  /// Bytes of all tensors added so far.
  uint64_t tensor_bytes() const;
  /// Throws RuntimeFailure unless the output folder's disk has `bytes` to spare, and 5 % more.
  void require_space(uint64_t bytes) const;

 private:
  /// Records a tensor whose data are appended to the spool next.
  void begin(const StoredTensor& tensor);

  struct State;
  std::unique_ptr<State> state_;
};

/// Throws Error if `output` is the folder `source`, by whatever path: files in use must not be written over.
void require_other_folder(const std::filesystem::path& source, const std::filesystem::path& output);

}  // namespace ballast
