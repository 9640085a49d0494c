// A Hugging Face style folder: config.json, one or more safetensors files, tokenizer files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/safetensors.h"
#include "kernels/view.h"

namespace ballast {

struct CheckpointOptions {
  bool strict_paths = false;  ///< refuse shards that are symbolic links
};

/// What a scan of a tensor's values found.
struct NonFinite {
  int64_t count = 0;
  int64_t first = -1;  ///< flat index of the first, -1 if there is none
};

/// Owns the file maps and the tensor list; knows no architecture. Move-only.
class Checkpoint {
 public:
  /// Throws Error naming file, field, expected and got; never blocks on a FIFO or device, never parses a
  /// pickle.
  static Checkpoint open(const std::filesystem::path& folder, const CheckpointOptions& options = {});

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& folder() const;
  const nlohmann::json& config() const;
  /// Oddities of the files that do not stop a load, one line each: shown to the user once.
  const std::vector<std::string>& warnings() const;
  const std::vector<std::filesystem::path>& files() const;
  /// Every tensor of every file, in the order of the files and of their data.
  const std::vector<StoredTensor>& tensors() const;
  const StoredTensor* find(std::string_view name) const;
  /// As find, but a missing tensor is an Error that names the folder and the tensor.
  const StoredTensor& require(std::string_view name) const;

  /// First byte of the tensor in the file map, any dtype; `tensor.bytes` bytes, unaligned.
  const char* bytes(const StoredTensor& tensor) const;
  /// View into the file map. The pointer may be unaligned: read it with memcpy or unaligned loads only.
  /// Error unless the dtype is F32, F16, BF16, I32 or U8.
  TensorView view(const StoredTensor& tensor) const;
  /// As `view`, for a float tensor whose shape must be `shape`; Error says expected and got.
  TensorView weight(std::string_view name, const Shape& shape) const;
  /// The tensor as binary32 values. Error unless the dtype is F32, F16 or BF16.
  std::vector<float> floats(const StoredTensor& tensor) const;
  /// Lets the operating system drop the tensor's pages: they were copied elsewhere.
  void release(const StoredTensor& tensor) const;
  /// Throws Error if a mapped file shrank since it was opened (reads then saw zeros instead of a SIGBUS).
  void check_intact() const;
  /// NaN and infinite values of a float tensor (F64 included); none in tensors of other dtypes.
  NonFinite non_finite(const StoredTensor& tensor) const;

 private:
  void index_names();
  void check_index(const ShardIndex& index);

  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace ballast
