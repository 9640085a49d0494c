// CPU backends for every instruction set, and weights packed for them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/matrices.h"

namespace ballast::test {

inline bool isa_runs_here(const std::string& isa) {
  return unsupported_isas().find(isa) == std::string::npos;
}
inline std::unique_ptr<Backend> cpu_backend(const std::string& isa, int threads = 1,
                                            const std::string& activations = "f32") {
  return find_backend({.device = "cpu", .threads = threads, .isa = isa, .activations = activations});
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

/// Any canonical form.
template <class Matrix>
auto packed(Backend& backend, const Matrix& matrix) {
  return Packed<decltype(matrix.facts())>(backend, matrix, matrix.facts());
}

inline Packed<DenseView> packed(Backend& backend, const DenseMatrix& matrix) {
  return {backend, matrix.stored(), {matrix.dtype, matrix.out_features, matrix.in_features, {}}};
}

}  // namespace ballast::test
