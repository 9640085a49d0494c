// Reverse mode. With a tape in the context every layer records its step back beside its forward, so models
// contain no backward code; `back_propagate` (backward.h) keeps the inputs of the blocks and records one block
// at a time.
//
// Gradients belong to memory, not to values: the residual stream is updated in place, and so is its gradient. A
// step that reads a value the stream will overwrite keeps a copy of it. Memory that a recorded forward takes
// from the workspace must outlive it: see Workspace::Hold.
#pragma once

#include <functional>
#include <unordered_map>
#include <vector>

#include "engine/nn/context.h"

namespace ballast::nn {

class Tape {
 public:
  /// From the gradients of a layer's outputs to those of its inputs; may ask for gradients only before it opens
  /// a workspace scope.
  using Step = std::function<void(const ForwardContext& context)>;
  void record(Step step) { steps_.push_back(std::move(step)); }

  /// `value` as it is now, in the workspace. What is added to the copy's gradient is added to that of `value`.
  TensorView copy(const ForwardContext& context, const TensorView& value);

  /// Gradient of the loss by the f32 values at `value`: in the workspace and zero when first asked for.
  OutputView gradient(const ForwardContext& context, const TensorView& value);
  /// Makes `gradient` that of `value` from now on.
  void seed(const TensorView& value, const OutputView& gradient) { gradients_[value.data] = gradient; }

  /// Runs the steps from the last to the first and forgets them and all gradients.
  void reverse(const ForwardContext& context);

 private:
  std::vector<Step> steps_;
  std::unordered_map<const void*, OutputView> gradients_;
  std::unordered_map<const void*, TensorView> copied_from_;
};

}  // namespace ballast::nn
