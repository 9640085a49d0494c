// The safetensors format: u64 little-endian header length, JSON header, data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast {

/// A tensor as a file names it. `dtype` is the file's spelling ("F16", "I64", …).
struct StoredTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  int file = 0;         ///< index into Checkpoint::files()
  uint64_t offset = 0;  ///< of the first byte in that file; no alignment is promised
  uint64_t bytes = 0;

  int64_t elements() const;
};

/// Longest header that is read, as in the format's reference implementation.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

/// Bits of one element; 0 for a dtype that is not known.
int bits_of_dtype(std::string_view dtype);

/// The tensors of the file whose bytes are `file` (only the header is touched), in the order of their data;
/// `what` names the file in messages. The ranges cover the data exactly, without holes and overlaps, and each
/// is as long as shape and dtype say; a tensor of unknown dtype is listed with the length that the file
/// gives. Throws Error.
std::vector<StoredTensor> parse_safetensors(std::string_view file, const std::string& what,
                                            int file_index = 0);

/// The header for `tensors`, whose data follow in this order without gaps, padded so that the data start at a
/// multiple of 8 bytes. `offset` and `file` are not looked at.
std::string safetensors_header(const std::vector<StoredTensor>& tensors);

/// `model.safetensors.index.json`.
struct ShardIndex {
  std::vector<std::pair<std::string, std::string>> weight_map;  ///< tensor, file; sorted by tensor
  std::optional<uint64_t> total_size;
};
/// Throws Error on bad JSON and on file names that are not plain names of safetensors files.
ShardIndex parse_shard_index(std::string_view text, const std::string& what);

}  // namespace ballast
