#include "engine/runtime/kv_cache.h"

namespace ballast {

KvCache::KvCache(Backend& backend, const nn::ModelFacts& facts, int64_t layers, int64_t positions)
    : pages_(std::max<int64_t>(1, pages_for(positions))) {
  const int64_t page_floats = facts.hidden / facts.heads * kPagePositions;
  for (int64_t layer = 0; layer < layers; ++layer) {
    storage_.emplace_back(backend, DType::f32, Shape{pages_, 2, facts.heads, page_floats});
    views_.push_back(storage_.back().view());
  }
  for (int64_t page = pages_ - 1; page >= 0; --page) free_.push_back(int32_t(page));
}

bool KvCache::reserve(PageTable& table, int64_t positions) {
  const int64_t missing = pages_for(positions) - int64_t(table.size());
  if (missing > int64_t(free_.size())) return false;
  for (int64_t i = 0; i < missing; ++i) {
    table.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void KvCache::release(PageTable& table) {
  free_.insert(free_.end(), table.rbegin(), table.rend());
  table.clear();
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (const Tensor& layer : storage_) total += layer.bytes();
  return total;
}

}  // namespace ballast
