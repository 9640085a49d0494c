// A view names memory that somebody else owns: pointer, dtype, shape, strides, device. Views are small
// values.
#pragma once

#include <array>
#include <initializer_list>
#include <string>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace ballast {

/// Up to four dimensions, outermost first, as PyTorch orders them.
struct Shape {
  static constexpr int kMaxRank = 4;
  std::array<int64_t, kMaxRank> dims{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    CHECK(sizes.size() <= kMaxRank);
    for (int64_t size : sizes) dims[size_t(rank++)] = size;
  }
  int64_t operator[](int axis) const { return dims[size_t(axis)]; }
  int64_t elements() const {
    int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= dims[size_t(axis)];
    return count;
  }
  bool operator==(const Shape&) const = default;
  std::string text() const;
};

/// Read-only view. `strides` count elements; the innermost is 1 for every view that an op accepts.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  Shape shape;
  std::array<int64_t, Shape::kMaxRank> strides{};

  TensorView() = default;
  /// Contiguous view of `shape` at `pointer`.
  TensorView(const void* pointer, DType type, Shape dims, Device where = Device::cpu);

  bool empty() const { return data == nullptr; }
  explicit operator bool() const { return data != nullptr; }
  int64_t bytes() const { return shape.elements() * size_of(dtype); }
  bool contiguous() const;
  /// Rows [first, first + count) of the outermost axis.
  TensorView rows(int64_t first, int64_t count) const;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  /// Pointer to row `index` of the outermost axis, for 4-byte float views.
  const float* row(int64_t index) const { return as<float>() + index * strides[0]; }
};

/// A view that may be written.
struct OutputView : TensorView {
  OutputView() = default;
  OutputView(void* pointer, DType type, Shape dims, Device where = Device::cpu)
      : TensorView(pointer, type, dims, where) {}
  OutputView rows(int64_t first, int64_t count) const;

  template <class T>
  T* as() const {
    return static_cast<T*>(const_cast<void*>(data));
  }
  float* row(int64_t index) const { return as<float>() + index * strides[0]; }
};

/// Executable shape contract: the first use of a dimension's name binds it, later uses must agree.
///   DimChecker dims("layernorm");  dims.match(x, "x", {"tokens", "hidden"});
class DimChecker {
 public:
  explicit DimChecker(const char* op) : op_(op) {}
  /// Throws ContractError naming op, operand and dimension when rank or size misfits.
  void match(const TensorView& view, const char* operand, std::initializer_list<const char*> names);
  /// Binds or compares one dimension by itself.
  void bind(const char* name, int64_t size, const char* operand);
  int64_t operator[](const char* name) const;
  void dtype(const TensorView& view, const char* operand, std::initializer_list<DType> allowed) const;

 private:
  struct Binding {
    const char* name;
    int64_t size;
    const char* operand;
  };
  const char* op_;
  std::array<Binding, 12> bindings_{};
  int count_ = 0;
};

}  // namespace ballast
