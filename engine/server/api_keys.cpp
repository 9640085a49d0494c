#include "engine/server/api_keys.h"

#include "engine/io/json.h"
#include "engine/io/trimmed.h"

namespace ballast::server {
namespace {

constexpr uint64_t kMaxBytes = 1 << 20;

bool same(std::string_view key, std::string_view given) {
  unsigned difference = key.size() == given.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i)
    difference |= unsigned(uint8_t(given[i]) ^ uint8_t(key[i % key.size()]));
  return difference == 0;
}

}  // namespace

ApiKeys ApiKeys::open(const std::filesystem::path& file) {
  const std::string text = read_file(file, kMaxBytes);
  ApiKeys keys;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = trimmed(std::string_view(text).substr(begin, end - begin), " \t\r");
    begin = end + 1;
    if (!line.empty() && line.front() != '#') keys.keys_.emplace_back(line);
  }
  if (keys.keys_.empty()) throw Error(file.string() + ": no keys, expected one a line");
  return keys;
}

int ApiKeys::find(std::string_view key) const {
  int found = -1;
  for (size_t i = 0; i < keys_.size(); ++i)
    if (same(keys_[i], key)) found = int(i);
  return found;
}

}  // namespace ballast::server
