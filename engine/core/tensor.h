// A buffer on a backend's device. Move-only; freed with the backend that made it, which must outlive it.
#pragma once

#include <span>
#include <vector>

#include "kernels/backend.h"

namespace ballast {

class Tensor {
 public:
  Tensor() = default;
  /// Uninitialized.
  Tensor(Backend& backend, DType dtype, Shape shape)
      : backend_(&backend),
        view_(backend.allocate(shape.elements() * size_of(dtype)), dtype, shape, backend.device()) {}
  /// f32 values copied from the host.
  static Tensor from_floats(Backend& backend, std::span<const float> values, Shape shape);

  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(view_, other.view_);
    return *this;
  }
  ~Tensor() {
    if (view_) backend_->release(view_.as<void>());
  }

  explicit operator bool() const { return bool(view_); }
  const OutputView& view() const { return view_; }
  const Shape& shape() const { return view_.shape; }
  int64_t bytes() const { return view_ ? view_.bytes() : 0; }
  /// Copy on the host; the tensor must be f32.
  std::vector<float> to_floats() const;

 private:
  Backend* backend_ = nullptr;
  OutputView view_;
};

}  // namespace ballast
