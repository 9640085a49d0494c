// The rows of one pass in host memory, built sequence by sequence.
#pragma once

#include <span>
#include <vector>

#include "engine/nn/context.h"
#include "engine/runtime/kv_cache.h"

namespace ballast {

class Batch {
 public:
  /// Appends `ids` at positions past, past + 1, …; `pages` must cover them and outlive the batch.
  void add(std::span<const int32_t> ids, int64_t past, const PageTable& pages);
  /// Appends room for `count` images. A batch holds text or images of one model.
  void add_images(const nn::ImageFacts& facts, int64_t count);
  /// The values of image `index`, [patches, patch values], to be filled in; valid until more are added.
  std::span<float> image(int64_t index);
  /// Asks for the logits of the row added last, or of one so many rows before it.
  void want_logits(int64_t before_last = 0) { logit_rows_.push_back(int32_t(tokens() - 1 - before_last)); }
  void clear();

  bool empty() const { return positions_.empty(); }
  int64_t tokens() const { return int64_t(positions_.size()); }
  const std::vector<int32_t>& logit_rows() const { return logit_rows_; }
  /// Views into this batch, valid until it changes.
  nn::BatchRows rows() const;

 private:
  std::vector<int32_t> ids_, positions_, logit_rows_;
  std::vector<AttentionSpan> spans_;
  std::vector<float> patches_;
  int64_t patch_values_ = 0, image_values_ = 0;
};

}  // namespace ballast
