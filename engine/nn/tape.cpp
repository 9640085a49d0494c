#include "engine/nn/tape.h"

namespace ballast::nn {

TensorView Tape::copy(const ForwardContext& context, const TensorView& value) {
  CHECK(value.contiguous());
  const OutputView copied = context.workspace.tensor(value.dtype, value.shape);
  context.backend.copy_to_device(copied.as<void>(), value.data, value.bytes());
  copied_from_[copied.data] = value;
  return copied;
}

OutputView Tape::gradient(const ForwardContext& context, const TensorView& value) {
  if (const auto source = copied_from_.find(value.data); source != copied_from_.end())
    return gradient(context, source->second);
  if (const auto known = gradients_.find(value.data); known != gradients_.end()) {
    // The same values may be seen as rows of another length.
    CHECK(known->second.shape.elements() == value.shape.elements(), known->second.shape.text(), " and ",
          value.shape.text());
    return {known->second.as<void>(), DType::f32, value.shape, known->second.device};
  }
  const OutputView fresh = context.workspace.floats(value.shape);
  context.backend.clear(fresh.as<void>(), fresh.bytes());
  gradients_[value.data] = fresh;
  return fresh;
}

void Tape::reverse(const ForwardContext& context) {
  for (; !steps_.empty(); steps_.pop_back()) steps_.back()(context);
  gradients_.clear();
  copied_from_.clear();
}

}  // namespace ballast::nn
