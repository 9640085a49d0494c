// The CPU kernels compiled for avx512; see kernels/CMakeLists.txt for the flags.
#define BALLAST_ISA avx512
#define BALLAST_AVX512 1
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/factorize_kernels.h"
#include "kernels/cpu/gradient_kernels.h"
#include "kernels/cpu/linear_kernels.h"

namespace ballast {

const KernelTable& avx512_kernels() {
  using namespace BALLAST_ISA;
  static const KernelTable table = {
      "avx512", kTokenBlock, linear,  decode_row,       layernorm,         append,
      attend,   update_f64,  softmax, softmax_backward, layernorm_backward};
  return table;
}

}  // namespace ballast
