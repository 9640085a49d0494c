// CPU backends for every instruction set, and weights packed for them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/random.h"

namespace ballast::test {

inline bool isa_runs_here(const std::string& isa) {
  return unsupported_isas().find(isa) == std::string::npos;
}
inline std::unique_ptr<Backend> cpu_backend(const std::string& isa, int threads = 1) {
  return find_backend({.device = "cpu", .threads = threads, .isa = isa});
}

/// One body over instruction sets; those that this machine cannot run are skipped.
class IsaTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!isa_runs_here(GetParam())) GTEST_SKIP() << "this machine cannot run " << GetParam();
    backend_ = cpu_backend(GetParam());
  }
  /// Whether this is the slow reference, for which large cases add nothing.
  bool scalar() const { return GetParam() == "scalar"; }

  std::unique_ptr<Backend> backend_;
};
inline std::string isa_name(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}
#define BALLAST_FOR_ALL_ISAS(Suite) \
  INSTANTIATE_TEST_SUITE_P(, Suite, testing::Values("scalar", "avx2", "avx512"), ::ballast::test::isa_name)

inline TensorView view_of(const std::vector<float>& data, Shape shape) {
  CHECK(int64_t(data.size()) == shape.elements());
  return TensorView(data.data(), DType::f32, shape);
}
inline OutputView view_of(std::vector<float>& data, Shape shape) {
  CHECK(int64_t(data.size()) == shape.elements());
  return OutputView(data.data(), DType::f32, shape);
}
inline TensorView view_of(const std::vector<int32_t>& data) {
  return TensorView(data.data(), DType::i32, {int64_t(data.size())});
}

/// A weight in the layout of one backend, which must outlive it.
template <class Encoding>
class Packed {
 public:
  template <class Source>
  Packed(Backend& backend, const Source& source, Encoding facts) : view(facts), backend_(&backend) {
    const int64_t bytes = backend.packed_bytes(view);
    blob_ = backend.allocate(bytes);
    backend.pack(source, view, blob_);
    view.data = TensorView(blob_, DType::u8, {bytes});
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  ~Packed() { backend_->release(blob_); }

  Encoding view;

 private:
  Backend* backend_;
  void* blob_;
};

inline Packed<AffineView> packed(Backend& backend, const AffineMatrix& matrix) {
  return {backend, matrix, {matrix.bits, matrix.out_features, matrix.in_features, matrix.group_size, {}}};
}

/// Row-major values rounded to a stored float type, and what they decode to.
struct DenseMatrix {
  DType dtype = DType::f32;
  int64_t out_features = 0, in_features = 0;
  std::vector<float> values;
  std::vector<uint16_t> halves;  ///< of f16 and bf16

  DenseMatrix(DType type, int64_t out, int64_t in, std::vector<float> numbers)
      : dtype(type), out_features(out), in_features(in), values(std::move(numbers)) {
    if (dtype == DType::f32) return;
    for (float& value : values) {
      halves.push_back(dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value));
      value = dtype == DType::f16 ? f16_to_f32(halves.back()) : bf16_to_f32(halves.back());
    }
  }
  TensorView stored() const {
    const void* data = dtype == DType::f32 ? static_cast<const void*>(values.data()) : halves.data();
    return TensorView(data, dtype, {out_features, in_features});
  }
};
inline Packed<DenseView> packed(Backend& backend, const DenseMatrix& matrix) {
  return {backend, matrix.stored(), {matrix.dtype, matrix.out_features, matrix.in_features, {}}};
}

inline AffineMatrix random_affine(Random& random, int bits, int64_t out, int64_t in, int64_t group_size) {
  AffineMatrix matrix{.bits = bits, .out_features = out, .in_features = in, .group_size = group_size};
  for (int64_t i = 0; i < out * in; ++i) matrix.codes.push_back(uint8_t(random.below(1 << bits)));
  for (int64_t i = 0; i < out * matrix.groups(); ++i) {
    matrix.scales.push_back(f32_to_f16(random.uniform(0.001f, 0.1f)));
    matrix.zero_points.push_back(uint8_t(random.below(1 << bits)));
  }
  matrix.check("random matrix");
  return matrix;
}
inline DenseMatrix decoded(const AffineMatrix& matrix) {
  std::vector<float> values(size_t(matrix.out_features * matrix.in_features));
  for (int64_t row = 0; row < matrix.out_features; ++row)
    matrix.decode_row(row, values.data() + row * matrix.in_features);
  return {DType::f32, matrix.out_features, matrix.in_features, std::move(values)};
}

}  // namespace ballast::test
