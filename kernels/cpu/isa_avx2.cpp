// The CPU kernels compiled for avx2; see kernels/CMakeLists.txt for the flags.
#define BALLAST_ISA avx2
#define BALLAST_AVX2 1
#include "kernels/cpu/isa_kernels.h"

namespace ballast {

const KernelTable& avx2_kernels() {
  static const KernelTable table = avx2::all_kernels("avx2");
  return table;
}

}  // namespace ballast
