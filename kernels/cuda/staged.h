// Matrices of the quantizer, which are mostly in host memory, on the device for the time of an op.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_backend.h"

namespace ballast::cuda {

/// A view's elements on the device: where they are, or copied to scratch memory, rows without gaps.
class Staged {
 public:
  /// `read`: the op reads the elements.
  Staged(Machine& machine, DeviceScratch& scratch, const TensorView& view, bool read = true)
      : machine_(machine), view_(view), columns_(view.shape[1]), data_(const_cast<void*>(view.data)) {
    if (view.device == Device::cuda || view.shape.elements() == 0) {
      stride_ = view.strides[0];
      return;
    }
    stride_ = columns_;
    data_ = scratch.bytes(view.bytes());
    if (!read) return;
    if (gapless()) {
      machine.copy_in(data_, view.data, view.bytes());
      return;
    }
    std::vector<char> rows(static_cast<size_t>(view.bytes()));
    for (int64_t row = 0; row < view.shape[0]; ++row)
      std::memcpy(rows.data() + row * row_bytes(), host_row(row), size_t(row_bytes()));
    machine.copy_in(data_, rows.data(), view.bytes());
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t stride() const { return stride_; }

  /// What the op wrote, to where the view is.
  void put_back() const {
    if (data_ == view_.data || view_.shape.elements() == 0) return;
    if (gapless()) return machine_.copy_out(const_cast<void*>(view_.data), data_, view_.bytes());
    std::vector<char> rows(static_cast<size_t>(view_.bytes()));
    machine_.copy_out(rows.data(), data_, view_.bytes());
    for (int64_t row = 0; row < view_.shape[0]; ++row)
      std::memcpy(host_row(row), rows.data() + row * row_bytes(), size_t(row_bytes()));
  }

 private:
  int64_t row_bytes() const { return columns_ * size_of(view_.dtype); }
  bool gapless() const { return view_.strides[0] == columns_ || view_.shape[0] == 1; }
  char* host_row(int64_t row) const {
    return static_cast<char*>(const_cast<void*>(view_.data)) + row * view_.strides[0] * size_of(view_.dtype);
  }

  Machine& machine_;
  TensorView view_;
  int64_t columns_, stride_ = 0;
  void* data_;
};

}  // namespace ballast::cuda
