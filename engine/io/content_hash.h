// 64-bit content hashes: XXH64 (Yann Collet, xxHash specification 0.1.1), the value that `xxhsum` prints.
//
// Finds damage and change, not malice: whoever wants a collision can make one.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace ballast {

class ContentHash {
 public:
  ContentHash();
  /// The next bytes; how they are cut into calls makes no difference.
  void add(std::string_view bytes);
  uint64_t value() const;

 private:
  std::array<uint64_t, 4> lanes_;
  std::array<char, 32> pending_{};  ///< the tail that does not fill a stripe yet
  uint64_t size_ = 0;
};

uint64_t content_hash(std::string_view bytes);
/// Of a regular file, read piece by piece. Error if it cannot be read.
uint64_t content_hash_of_file(const std::filesystem::path& path);
/// 16 hexadecimal digits.
std::string hex(uint64_t hash);

}  // namespace ballast
