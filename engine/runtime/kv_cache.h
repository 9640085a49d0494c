// Paged key/value cache: a pool of pages of 16 positions, shared by all sequences; one page number covers all
// layers.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/nn/model.h"

namespace ballast {

/// Pages of one sequence, in the order of its positions.
using PageTable = std::vector<int32_t>;

class KvCache {
 public:
  /// Room for `positions` positions in `layers` layers (rounded up to whole pages); contents start undefined.
  KvCache(Backend& backend, const nn::ModelFacts& facts, int64_t layers, int64_t positions);

  /// Grows `table` to hold `positions` positions; false, and no change, when the pool has too few free pages.
  bool reserve(PageTable& table, int64_t positions);
  void release(PageTable& table);

  int64_t free_pages() const { return int64_t(free_.size()); }
  int64_t pages() const { return pages_; }
  int64_t bytes() const;
  /// One view per layer, [pages, 2, heads, head_dim · 16].
  std::span<const OutputView> views() const { return views_; }

  static int64_t pages_for(int64_t positions) { return (positions + kPagePositions - 1) / kPagePositions; }

 private:
  int64_t pages_;
  std::vector<Tensor> storage_;
  std::vector<OutputView> views_;
  std::vector<int32_t> free_;
};

}  // namespace ballast
