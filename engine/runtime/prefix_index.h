// Which full cache pages hold which tokens, so that a sequence can start from pages that another one computed.
//
// A page is found by its 16 tokens and the page before it: two sequences share a page only if all tokens up to
// its end are the same. What a page holds depends on those tokens alone (results depend on neither batch nor
// chunking), so a shared page has the very bits that the sequence would have computed itself.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/ops/attention.h"

namespace ballast {

class PrefixIndex {
 public:
  static constexpr int32_t kNone = -1;

  /// The page that follows `parent` (kNone: the first) and holds `tokens` (kPagePositions of them), or kNone.
  /// Pages of different `salt` never meet.
  int32_t find(uint64_t salt, int32_t parent, std::span<const int32_t> tokens) const;
  /// `page` must not be in the index yet, and nothing may be found under this key.
  void insert(uint64_t salt, int32_t parent, std::span<const int32_t> tokens, int32_t page);
  /// The pages that follow this one must have been erased before.
  void erase(int32_t page);
  bool contains(int32_t page) const { return size_t(page) < keys_.size() && keys_[size_t(page)] != nullptr; }
  int64_t size() const { return int64_t(pages_.size()); }

 private:
  struct Key {
    uint64_t salt;
    int32_t parent;
    std::array<int32_t, kPagePositions> tokens;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  static Key key(uint64_t salt, int32_t parent, std::span<const int32_t> tokens);

  std::unordered_map<Key, int32_t, Hash> pages_;
  std::vector<const Key*> keys_;  ///< by page; null for those that are not in the index
};

}  // namespace ballast
