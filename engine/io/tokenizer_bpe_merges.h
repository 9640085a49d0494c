// Joining the symbols of one word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace ballast {

/// The merge list: which pairs of tokens join, in which order of preference, and into what.
class BpeMerges {
 public:
  void reserve(size_t count) { merges_.reserve(count); }

  /// The pair (left, right) becomes `joined`; a lower `rank` goes first. A pair added twice takes the later
  /// rank.
  void add(int32_t left, int32_t right, uint32_t rank, int32_t joined);

  /// Joins within `symbols` until no pair is in the list: always the lowest rank, among equals the leftmost.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t joined;
  };
  struct Hash {
    size_t operator()(uint64_t pair) const;
  };

  const Merge* find(int32_t left, int32_t right) const;
  void apply_short(std::vector<int32_t>& symbols) const;  // quadratic with a small constant
  void apply_long(std::vector<int32_t>& symbols) const;   // n log n

  std::unordered_map<uint64_t, Merge, Hash> merges_;  // left << 32 | right
};

}  // namespace ballast
