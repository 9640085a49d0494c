// Operands in host memory, on the device for the time of an op. Every op takes them: solvers work in host memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_backend.h"

namespace ballast::cuda {

/// A view's elements on the device: where they are, or copied to scratch memory, rows without gaps. What has more than two
/// dimensions is without gaps behind the first.
class Staged {
 public:
  /// `read`: the op reads the elements.
  Staged(Machine& machine, DeviceScratch& scratch, const TensorView& view, bool read = true)
      : machine_(machine),
        view_(view),
        rows_(view.shape.rank == 1 ? 1 : view.shape[0]),
        columns_(view.shape[0] == 0 ? 0 : view.shape.elements() / rows_),
        data_(const_cast<void*>(view.data)) {
    if (!view || view.device == Device::cuda || view.shape.elements() == 0) {
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
    for (int64_t row = 0; row < rows_; ++row)
      std::memcpy(rows.data() + row * row_bytes(), host_row(row), size_t(row_bytes()));
    machine.copy_in(data_, rows.data(), view.bytes());
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t stride() const { return stride_; }
  /// The view there.
  OutputView view() const {
    if (data_ == view_.data) {
      OutputView same;
      static_cast<TensorView&>(same) = view_;
      return same;
    }
    return OutputView(data_, view_.dtype, view_.shape, Device::cuda);
  }

  /// What the op wrote, to where the view is.
  void put_back() const {
    if (data_ == view_.data || view_.shape.elements() == 0) return;
    if (gapless()) return machine_.copy_out(const_cast<void*>(view_.data), data_, view_.bytes());
    std::vector<char> rows(static_cast<size_t>(view_.bytes()));
    machine_.copy_out(rows.data(), data_, view_.bytes());
    for (int64_t row = 0; row < rows_; ++row)
      std::memcpy(host_row(row), rows.data() + row * row_bytes(), size_t(row_bytes()));
  }

 private:
  int64_t row_bytes() const { return columns_ * size_of(view_.dtype); }
  bool gapless() const { return rows_ == 1 || view_.strides[0] == columns_; }
  char* host_row(int64_t row) const {
    return static_cast<char*>(const_cast<void*>(view_.data)) + row * view_.strides[0] * size_of(view_.dtype);
  }

  Machine& machine_;
  TensorView view_;
  int64_t rows_, columns_, stride_ = 0;
  void* data_;
};

}  // namespace ballast::cuda
