// oneDNN's matrix products, looked up at run time: linked in they would cost every command its start.
#pragma once

#include <cstdint>

namespace ballast {

class OneDnn {
 public:
  /// `threads` 0: its default. Its threads sleep between products, so that they take no time from ours.
  explicit OneDnn(int threads);
  /// False without the library (libdnnl).
  explicit operator bool() const { return sgemm_ != nullptr; }

  /// c [m, n] = a [m, k] · b, f32, rows adjacent. `b` is [k, n], or [n, k] where `transposed`.
  void multiply(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
                bool transposed = false) const;
  /// c [m, n] = a [m, k] · bᵀ, b [n, k]: unsigned times signed bytes, s32 sums.
  void multiply(int64_t m, int64_t n, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) const;

 private:
  using Sgemm = int(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                    int64_t, float, float*, int64_t);
  using ByteGemm = int(char, char, char, int64_t, int64_t, int64_t, float, const uint8_t*, int64_t, uint8_t,
                       const int8_t*, int64_t, int8_t, float, int32_t*, int64_t, const int32_t*);
  Sgemm* sgemm_ = nullptr;
  ByteGemm* byte_gemm_ = nullptr;
};

}  // namespace ballast
