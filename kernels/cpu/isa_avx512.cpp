// The CPU kernels compiled for avx512; see kernels/CMakeLists.txt for the flags.
#define BALLAST_ISA avx512
#define BALLAST_AVX512 1
#include "kernels/cpu/isa_kernels.h"

namespace ballast {

const KernelTable& avx512_kernels() {
  static const KernelTable table = avx512::all_kernels("avx512");
  return table;
}

}  // namespace ballast
