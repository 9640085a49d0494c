#include "engine/runtime/prefix_index.h"

#include <algorithm>

#include "kernels/check.h"

namespace ballast {

// FNV-1a over words, with the salt first.
size_t PrefixIndex::Hash::operator()(const Key& key) const {
  uint64_t hash = 0xCBF29CE484222325ull ^ key.salt;
  const auto mix = [&](int32_t value) {
    hash = (hash ^ uint32_t(value)) * 0x100000001B3ull;
    hash ^= hash >> 29;
  };
  mix(key.parent);
  for (const int32_t token : key.tokens) mix(token);
  return size_t(hash);
}

PrefixIndex::Key PrefixIndex::key(uint64_t salt, int32_t parent, std::span<const int32_t> tokens) {
  CHECK(int64_t(tokens.size()) == kPagePositions);
  Key key{salt, parent, {}};
  std::copy(tokens.begin(), tokens.end(), key.tokens.begin());
  return key;
}

int32_t PrefixIndex::find(uint64_t salt, int32_t parent, std::span<const int32_t> tokens) const {
  const auto found = pages_.find(key(salt, parent, tokens));
  return found == pages_.end() ? kNone : found->second;
}

void PrefixIndex::insert(uint64_t salt, int32_t parent, std::span<const int32_t> tokens, int32_t page) {
  CHECK(!contains(page));
  const auto [at, added] = pages_.emplace(key(salt, parent, tokens), page);
  CHECK(added, "these tokens have a page");
  if (keys_.size() <= size_t(page)) keys_.resize(size_t(page) + 1);
  keys_[size_t(page)] = &at->first;
}

void PrefixIndex::erase(int32_t page) {
  CHECK(contains(page));
  pages_.erase(pages_.find(*keys_[size_t(page)]));
  keys_[size_t(page)] = nullptr;
}

}  // namespace ballast
