// A Hugging Face style folder: config.json, one or more safetensors files, tokenizer files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/view.h"

namespace ballast {

/// A tensor as a file names it. `dtype` is the file's spelling ("F16", "I64", …).
struct StoredTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  int file = 0;          ///< index into Checkpoint::files()
  uint64_t offset = 0;   ///< of the first byte in that file; no alignment is promised
  uint64_t bytes = 0;

  int64_t elements() const;
};

struct CheckpointOptions {
  bool strict_paths = false;  ///< refuse shards that are symbolic links
};

/// Owns the file maps and the tensor list; knows no architecture. Move-only.
class Checkpoint {
 public:
  /// Throws Error naming file, field, expected and got; never blocks on a FIFO or device, never parses a pickle.
  static Checkpoint open(const std::filesystem::path& folder, const CheckpointOptions& options = {});

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& folder() const;
  const nlohmann::json& config() const;
  const std::vector<std::filesystem::path>& files() const;
  /// Every tensor of every file, in file order.
  const std::vector<StoredTensor>& tensors() const;
  const StoredTensor* find(std::string_view name) const;
  /// As find, but a missing tensor is an Error that names the folder and the tensor.
  const StoredTensor& require(std::string_view name) const;

  /// View into the file map. The pointer may be unaligned: read it with memcpy or unaligned loads only.
  /// Error unless the dtype is F32, F16, BF16, I32 or U8.
  TensorView view(const StoredTensor& tensor) const;
  /// As `view`, for a float tensor whose shape must be `shape`; Error says expected and got.
  TensorView weight(std::string_view name, const Shape& shape) const;
  /// The tensor as binary32 values.
  std::vector<float> floats(const StoredTensor& tensor) const;
  /// Lets the operating system drop the tensor's pages: they were copied elsewhere.
  void release(const StoredTensor& tensor) const;
  /// Throws Error if a mapped file shrank since it was opened (reads then saw zeros instead of a SIGBUS).
  void check_intact() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace ballast
