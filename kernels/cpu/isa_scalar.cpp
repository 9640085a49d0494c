// The CPU kernels compiled for scalar; see kernels/CMakeLists.txt for the flags.
#define BALLAST_ISA scalar
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/factorize_kernels.h"
#include "kernels/cpu/gradient_kernels.h"
#include "kernels/cpu/linear_kernels.h"

namespace ballast {

const KernelTable& scalar_kernels() {
  using namespace BALLAST_ISA;
  static const KernelTable table = {
      "scalar", kTokenBlock, linear,  decode_row,       layernorm,         append,
      attend,   update_f64,  softmax, softmax_backward, layernorm_backward};
  return table;
}

}  // namespace ballast
