// Who may use the server: keys from a file, one a line; empty lines and lines that begin with # do not count.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace ballast::server {

class ApiKeys {
 public:
  /// No keys: everybody may.
  ApiKeys() = default;
  /// Error when the file cannot be read or holds no key.
  static ApiKeys open(const std::filesystem::path& file);

  bool required() const { return !keys_.empty(); }
  /// Which key it is, or -1. Takes the same time for every wrong key of a length.
  int find(std::string_view key) const;

 private:
  std::vector<std::string> keys_;
};

}  // namespace ballast::server
