// Reading what may be in device memory.
#pragma once

#include <vector>

#include "kernels/backend.h"

namespace ballast {

/// A f32 view [rows, width] that the host can read: the one given, or a copy without gaps of one on the device.
class OnHost {
 public:
  OnHost(Backend& backend, const TensorView& view) : view_(view) {
    if (!view || view.device == Device::cpu) return;
    CHECK(view.dtype == DType::f32 && view.contiguous());
    copy_.resize(size_t(view.shape.elements()));
    if (!copy_.empty()) backend.copy_to_host(copy_.data(), view.data, view.bytes());
    view_ = TensorView(copy_.data(), view.dtype, view.shape);
  }
  OnHost(const OnHost&) = delete;
  OnHost& operator=(const OnHost&) = delete;

  const TensorView& view() const { return view_; }
  const float* row(int64_t index) const { return view_.row(index); }

 private:
  std::vector<float> copy_;
  TensorView view_;
};

}  // namespace ballast
