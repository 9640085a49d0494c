// The CPU kernels compiled for scalar; see kernels/CMakeLists.txt for the flags.
#define BALLAST_ISA scalar
#include "kernels/cpu/isa_kernels.h"

namespace ballast {

const KernelTable& scalar_kernels() {
  static const KernelTable table = scalar::all_kernels("scalar");
  return table;
}

}  // namespace ballast
