#include "tools/bench_dnnl.h"

#include <dlfcn.h>

#include <cstdlib>

#include "kernels/check.h"

namespace ballast {

OneDnn::OneDnn(int threads) {
  setenv("OMP_WAIT_POLICY", "passive", 0);  // read when the library's OpenMP starts
  void* library = nullptr;
  for (const char* name : {"libdnnl.so.3", "libdnnl.so.2", "libdnnl.so"})
    if (!library) library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
  if (!library) return;
  sgemm_ = reinterpret_cast<Sgemm*>(dlsym(library, "dnnl_sgemm"));
  byte_gemm_ = reinterpret_cast<ByteGemm*>(dlsym(library, "dnnl_gemm_u8s8s32"));
  if (auto* set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
      set && threads > 0)
    set(threads);
}

void OneDnn::multiply(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
                      bool transposed) const {
  const int status = sgemm_('N', transposed ? 'T' : 'N', m, n, k, 1, a, k, b, transposed ? k : n, 0, c, n);
  if (status != 0) throw RuntimeFailure(str("dnnl_sgemm failed with status ", status));
}

void OneDnn::multiply(int64_t m, int64_t n, int64_t k, const uint8_t* a, const int8_t* b, int32_t* c) const {
  const int32_t offset = 0;
  const int status = byte_gemm_('N', 'T', 'F', m, n, k, 1, a, k, 0, b, k, 0, 0, c, n, &offset);
  if (status != 0) throw RuntimeFailure(str("dnnl_gemm_u8s8s32 failed with status ", status));
}

}  // namespace ballast
