// Paged key/value cache: a pool of pages of 16 positions, shared by all sequences; one page number covers all
// layers. Full pages can be shared between sequences that begin with the same tokens, and stay findable after
// their sequences are gone until the room is needed.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <string_view>
#include <vector>

#include "engine/nn/model.h"
#include "engine/runtime/prefix_index.h"

namespace ballast {

/// Pages of one sequence, in the order of its positions.
using PageTable = std::vector<int32_t>;

/// How keys and values are stored: as they are, or as signed bytes with a scale for each position and head
/// (ops/attention.h), in little more than a quarter of the memory.
enum class CacheType : uint8_t { f32, int8 };
std::string_view name_of(CacheType type);

class KvCache {
 public:
  /// Room for `positions` positions in `layers` layers (rounded up to whole pages); contents start undefined.
  KvCache(Backend& backend, const nn::ModelFacts& facts, int64_t layers, int64_t positions,
          CacheType type = CacheType::f32);

  /// Grows `table` to hold `positions` positions; false, and no change, when the pool has too few free pages.
  bool reserve(PageTable& table, int64_t positions);
  /// The table no longer needs its pages.
  void release(PageTable& table);

  /// Fills an empty table with the findable pages that the beginning of `tokens` has; returns the positions
  /// they hold.
  int64_t share(PageTable& table, uint64_t salt, std::span<const int32_t> tokens);
  /// Makes pages [first, last) of a table, computed in full, findable under `tokens`, the sequence's from its
  /// beginning. A page that is findable already takes the place of the table's own.
  void publish(PageTable& table, uint64_t salt, std::span<const int32_t> tokens, int64_t first, int64_t last);

  /// Pages that no table needs, findable or not.
  int64_t free_pages() const { return int64_t(free_.size()) + int64_t(kept_.size()); }
  int64_t pages() const { return pages_; }
  int64_t bytes() const;
  /// Of one position of all the model's layers.
  static int64_t position_bytes(const nn::ModelFacts& facts, CacheType type);
  CacheType type() const { return type_; }
  /// One view per layer, see ops/attention.h.
  std::span<const OutputView> views() const { return views_; }

  static int64_t pages_for(int64_t positions) { return (positions + kPagePositions - 1) / kPagePositions; }

 private:
  struct Page {
    int32_t users = 0;                  ///< tables it is in
    std::list<int32_t>::iterator kept;  ///< its place in kept_, when it is findable and has no users
  };
  int32_t take();
  void use(int32_t page);
  void drop(int32_t page);

  CacheType type_;
  int64_t pages_;
  std::vector<Tensor> storage_;
  std::vector<OutputView> views_;
  std::vector<Page> states_;
  std::vector<int32_t> free_;
  PrefixIndex index_;
  /// Findable pages without users, the next to be given up first. A page comes after those that follow it in a
  /// text, for tables are released from their end, so none is given up before what builds on it.
  std::list<int32_t> kept_;
};

}  // namespace ballast
