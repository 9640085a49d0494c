// What one forward pass borrows. Outlives no call and is never global.
#pragma once

#include <span>

#include "engine/core/workspace.h"
#include "engine/nn/observer.h"
#include "kernels/ops/attention.h"

namespace ballast::nn {

/// The rows of one pass: tokens of one or more sequences, each sequence's rows consecutive. An image is a sequence,
/// too.
struct BatchRows {
  TensorView ids;        ///< i32 [tokens]; empty for images
  TensorView positions;  ///< i32 [tokens], counted from 0 in each sequence
  std::span<const AttentionSpan> spans;
  TensorView patches;  ///< f32 [images · patches, patch values] of images; empty for text
  int64_t tokens() const { return positions.shape[0]; }
};

class Tape;

struct ForwardContext {
  Backend& backend;
  Workspace& workspace;
  const BatchRows& batch;
  std::span<const OutputView> cache;  ///< one view per layer, see ops/attention.h; empty for images
  Observer* observer = nullptr;
  Tape* tape = nullptr;  ///< where layers record the way back, see tape.h

  void observe(const Linear& layer, const TensorView& x) const {
    if (observer) observer->input(layer, x);
  }
};

}  // namespace ballast::nn
