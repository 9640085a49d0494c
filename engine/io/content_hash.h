// 64-bit content hashes: XXH64 (Yann Collet, xxHash specification 0.1.1), the value that `xxhsum` prints.
//
// Finds damage and change, not malice: whoever wants a collision can make one.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

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
/// Of the files' contents, one behind the other, read piece by piece. Error if one is not a readable regular
/// file.
uint64_t content_hash_of_files(const std::vector<std::filesystem::path>& paths);
/// 16 hexadecimal digits.
std::string hex(uint64_t hash);

}  // namespace ballast
