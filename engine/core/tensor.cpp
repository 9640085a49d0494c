#include "engine/core/tensor.h"

namespace ballast {

Tensor Tensor::from_floats(Backend& backend, std::span<const float> values, Shape shape) {
  CHECK(int64_t(values.size()) == shape.elements(), values.size(), " values for ", shape.text());
  Tensor tensor(backend, DType::f32, shape);
  backend.copy_to_device(tensor.view().as<void>(), values.data(), tensor.bytes());
  return tensor;
}

std::vector<float> Tensor::to_floats() const {
  CHECK(view_.dtype == DType::f32);
  std::vector<float> values(size_t(view_.shape.elements()));
  if (!values.empty()) backend_->copy_to_host(values.data(), view_.data, view_.bytes());
  return values;
}

}  // namespace ballast
