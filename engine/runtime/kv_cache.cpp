#include "engine/runtime/kv_cache.h"

#include <algorithm>

namespace ballast {
namespace {

std::span<const int32_t> page_of(std::span<const int32_t> tokens, int64_t index) {
  return tokens.subspan(size_t(index * kPagePositions), size_t(kPagePositions));
}

// Of what is in the pages.
DType element_of(CacheType type) {
  return type == CacheType::f32 ? DType::f32 : DType::u8;
}

}  // namespace

std::string_view name_of(CacheType type) {
  return type == CacheType::f32 ? "f32" : "int8";
}

KvCache::KvCache(Backend& backend, const nn::ModelFacts& facts, int64_t layers, int64_t positions,
                 CacheType type)
    : type_(type), pages_(std::max<int64_t>(1, pages_for(positions))), states_(size_t(pages_)) {
  const DType element = element_of(type);
  const int64_t elements = cache_page_elements(element, facts.hidden / facts.heads);
  for (int64_t layer = 0; layer < layers; ++layer) {
    storage_.emplace_back(backend, element, Shape{pages_, 2, facts.heads, elements});
    views_.push_back(storage_.back().view());
  }
  for (int64_t page = pages_ - 1; page >= 0; --page) free_.push_back(int32_t(page));
}

int32_t KvCache::take() {
  int32_t page = 0;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    page = kept_.front();
    kept_.pop_front();
    index_.erase(page);
  }
  states_[size_t(page)].users = 1;
  return page;
}

void KvCache::use(int32_t page) {
  Page& state = states_[size_t(page)];
  if (state.users++ == 0) kept_.erase(state.kept);
}

void KvCache::drop(int32_t page) {
  Page& state = states_[size_t(page)];
  CHECK(state.users > 0);
  if (--state.users > 0) return;
  if (index_.contains(page)) {
    state.kept = kept_.insert(kept_.end(), page);
  } else {
    free_.push_back(page);
  }
}

bool KvCache::reserve(PageTable& table, int64_t positions) {
  const int64_t missing = pages_for(positions) - int64_t(table.size());
  if (missing > free_pages()) return false;
  for (int64_t i = 0; i < missing; ++i) table.push_back(take());
  return true;
}

void KvCache::release(PageTable& table) {
  for (auto page = table.rbegin(); page != table.rend(); ++page) drop(*page);
  table.clear();
}

int64_t KvCache::share(PageTable& table, uint64_t salt, std::span<const int32_t> tokens) {
  CHECK(table.empty());
  int32_t page = PrefixIndex::kNone;
  for (int64_t i = 0; i < int64_t(tokens.size()) / kPagePositions; ++i) {
    page = index_.find(salt, page, page_of(tokens, i));
    if (page == PrefixIndex::kNone) break;
    use(page);
    table.push_back(page);
  }
  return int64_t(table.size()) * kPagePositions;
}

void KvCache::publish(PageTable& table, uint64_t salt, std::span<const int32_t> tokens, int64_t first,
                      int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const int32_t parent = i == 0 ? PrefixIndex::kNone : table[size_t(i - 1)];
    const int32_t known = index_.find(salt, parent, page_of(tokens, i));
    if (known == PrefixIndex::kNone) {
      index_.insert(salt, parent, page_of(tokens, i), table[size_t(i)]);
    } else {
      use(known);
      drop(table[size_t(i)]);
      table[size_t(i)] = known;
    }
  }
}

int64_t KvCache::position_bytes(const nn::ModelFacts& facts, CacheType type) {
  const DType element = element_of(type);
  const int64_t page = cache_page_elements(element, facts.hidden / facts.heads) * size_of(element);
  return facts.layers * 2 * facts.heads * page / kPagePositions;
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (const Tensor& layer : storage_) total += layer.bytes();
  return total;
}

}  // namespace ballast
