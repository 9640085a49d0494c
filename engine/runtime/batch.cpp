#include "engine/runtime/batch.h"

namespace ballast {

void Batch::add(std::span<const int32_t> ids, int64_t past, const PageTable& pages) {
  CHECK(!ids.empty());
  CHECK(KvCache::pages_for(past + int64_t(ids.size())) <= int64_t(pages.size()));
  spans_.push_back({int32_t(ids_.size()), int32_t(ids.size()), int32_t(past), pages.data()});
  for (size_t i = 0; i < ids.size(); ++i) {
    ids_.push_back(ids[i]);
    positions_.push_back(int32_t(past + int64_t(i)));
  }
}

void Batch::clear() {
  ids_.clear();
  positions_.clear();
  logit_rows_.clear();
  spans_.clear();
}

nn::BatchRows Batch::rows() const {
  const Shape shape{tokens()};
  return {.ids = {ids_.data(), DType::i32, shape},
          .positions = {positions_.data(), DType::i32, shape},
          .spans = spans_};
}

}  // namespace ballast
