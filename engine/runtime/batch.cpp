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

void Batch::add_images(const nn::ImageFacts& facts, int64_t count) {
  CHECK(ids_.empty() && (patch_values_ == 0 || patch_values_ == facts.patch_values()));
  patch_values_ = facts.patch_values();
  image_values_ = facts.patches() * patch_values_;
  for (int64_t i = 0; i < count; ++i) {
    spans_.push_back({.first_row = int32_t(positions_.size()), .rows = int32_t(facts.tokens)});
    for (int32_t position = 0; position < facts.tokens; ++position) positions_.push_back(position);
  }
  patches_.resize(patches_.size() + size_t(count * image_values_));
}

std::span<float> Batch::image(int64_t index) {
  return std::span(patches_).subspan(size_t(index * image_values_), size_t(image_values_));
}

void Batch::clear() {
  patch_values_ = image_values_ = 0;
  patches_.clear();
  ids_.clear();
  positions_.clear();
  logit_rows_.clear();
  spans_.clear();
}

nn::BatchRows Batch::rows() const {
  const Shape shape{tokens()};
  nn::BatchRows rows{.positions = {positions_.data(), DType::i32, shape}, .spans = spans_};
  if (patch_values_ == 0) {
    rows.ids = {ids_.data(), DType::i32, shape};
  } else {
    rows.patches = {patches_.data(), DType::f32, {int64_t(patches_.size()) / patch_values_, patch_values_}};
  }
  return rows;
}

}  // namespace ballast
