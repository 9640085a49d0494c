// Runs a batch through a model: embed, blocks, head.
#pragma once

#include "engine/nn/model.h"
#include "engine/runtime/batch.h"

namespace ballast {

class Runner {
 public:
  /// Borrows model and cache. The cache must have as many layers as the model.
  Runner(Backend& backend, nn::Model& model, KvCache& cache)
      : backend_(backend), model_(model), cache_(&cache), workspace_(backend) {}
  /// For models that read images, which keep nothing.
  Runner(Backend& backend, nn::Model& model) : backend_(backend), model_(model), workspace_(backend) {}

  /// Hidden states after the last block, f32 [tokens, hidden]; valid until the next call of `hidden` or
  /// `run`.
  TensorView hidden(const Batch& batch);
  /// Logits f32 [rows, vocab] of rows of what `hidden` returned, at `positions` i32 [rows]; valid until the
  /// next call.
  TensorView logits(const TensorView& hidden_rows, const TensorView& positions);
  /// Logits of the batch's logit_rows [first, first + count), f32 [count, vocab], from what `hidden` returned;
  /// valid until the next call.
  TensorView logits(const Batch& batch, const TensorView& hidden, int64_t first, int64_t count);
  /// Logits of all the batch's logit_rows, or of its images, f32 [images, vocab]; valid until the next call.
  TensorView run(const Batch& batch);

  int64_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  nn::ForwardContext context(const nn::BatchRows& rows) {
    return {backend_, workspace_, rows, cache_ ? cache_->views() : std::span<const OutputView>()};
  }

  Backend& backend_;
  nn::Model& model_;
  KvCache* cache_ = nullptr;
  Workspace workspace_;
  Tensor hidden_, picked_, logits_;  ///< grown to the largest batch seen
  std::vector<int32_t> picked_positions_;
};

}  // namespace ballast
