#include "kernels/view.h"

#include <cstring>

namespace ballast {

std::string Shape::text() const {
  std::string out = "[";
  for (int axis = 0; axis < rank; ++axis) out += (axis ? ", " : "") + std::to_string(dims[size_t(axis)]);
  return out + "]";
}

TensorView::TensorView(const void* pointer, DType type, Shape dims, Device where)
    : data(pointer), dtype(type), device(where), shape(dims) {
  int64_t stride = 1;
  for (int axis = shape.rank - 1; axis >= 0; --axis) {
    strides[size_t(axis)] = stride;
    stride *= shape[axis];
  }
}

bool TensorView::contiguous() const {
  int64_t stride = 1;
  for (int axis = shape.rank - 1; axis >= 0; --axis) {
    if (shape[axis] != 1 && strides[size_t(axis)] != stride) return false;
    stride *= shape[axis];
  }
  return true;
}

TensorView TensorView::rows(int64_t first, int64_t count) const {
  CHECK(shape.rank >= 1 && first >= 0 && count >= 0 && first + count <= shape[0], shape.text());
  TensorView part = *this;
  part.data = as<char>() + first * strides[0] * size_of(dtype);
  part.shape.dims[0] = count;
  return part;
}

OutputView OutputView::rows(int64_t first, int64_t count) const {
  OutputView part;
  static_cast<TensorView&>(part) = TensorView::rows(first, count);
  return part;
}

void DimChecker::match(const TensorView& view, const char* operand,
                       std::initializer_list<const char*> names) {
  CHECK(view.shape.rank == int(names.size()), op_, ": ", operand, " has shape ", view.shape.text(),
        ", expected rank ", names.size());
  int axis = 0;
  for (const char* name : names) bind(name, view.shape[axis++], operand);
  CHECK(view.shape.rank == 0 || view.strides[size_t(view.shape.rank - 1)] == 1, op_, ": ", operand,
        " is not contiguous in its last dimension");
}

void DimChecker::bind(const char* name, int64_t size, const char* operand) {
  for (int i = 0; i < count_; ++i) {
    const Binding& known = bindings_[size_t(i)];
    if (std::strcmp(known.name, name) != 0) continue;
    CHECK(known.size == size, op_, ": ", name, " is ", size, " in ", operand, " but ", known.size, " in ",
          known.operand);
    return;
  }
  CHECK(count_ < int(bindings_.size()));
  bindings_[size_t(count_++)] = {name, size, operand};
}

int64_t DimChecker::operator[](const char* name) const {
  for (int i = 0; i < count_; ++i)
    if (std::strcmp(bindings_[size_t(i)].name, name) == 0) return bindings_[size_t(i)].size;
  CHECK(false, op_, ": no dimension ", name);
  return 0;
}

void DimChecker::dtype(const TensorView& view, const char* operand,
                       std::initializer_list<DType> allowed) const {
  for (DType type : allowed)
    if (view.dtype == type) return;
  CHECK(false, op_, ": ", operand, " has dtype ", name_of(view.dtype));
}

}  // namespace ballast
