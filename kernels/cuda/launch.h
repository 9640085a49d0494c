// Launching kernels. A kernel is a type:
//
//   struct Args                 what a launch is told, by value
//   kThreads, kBlocks           threads of a block; blocks that a multiprocessor should be able to hold at once
//   static void run(const Args&)   device code, in terms of device.h
#pragma once

#include <memory>
#include <type_traits>

#include "kernels/cuda/device.h"
#include "kernels/cuda/runtime.h"

namespace ballast::cuda {

#if defined(__CUDACC__)

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    kernel_entry(const __grid_constant__ typename Kernel::Args args) {
  Kernel::run(args);
}

template <class Kernel>
void issue_launch(Machine& machine, const Grid& grid, const void* args) {
  // More than 48 KB must be asked for, once for each kernel.
  static int64_t granted = 48 << 10;
  if (grid.shared_bytes > granted) {
    check_call(cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(grid.shared_bytes)),
               "cudaFuncSetAttribute");
    granted = grid.shared_bytes;
  }
  const dim3 blocks(unsigned(grid.blocks), unsigned(grid.blocks_y));
  kernel_entry<Kernel>
      <<<blocks, Kernel::kThreads, size_t(grid.shared_bytes), static_cast<cudaStream_t>(machine.stream())>>>(
          *static_cast<const typename Kernel::Args*>(args));
  check_call(cudaGetLastError(), "a kernel launch");
}

#else

/// Defined by the emulator. `bytes`: of args, padding cleared.
void launch_blocks(const Grid& grid, int threads, void (*body)(const void* args), const void* args,
                   size_t bytes);

template <class Kernel>
void issue_launch(Machine&, const Grid& grid, const void* args) {
  launch_blocks(
      grid, Kernel::kThreads,
      [](const void* erased) { Kernel::run(*static_cast<const typename Kernel::Args*>(erased)); }, args,
      sizeof(typename Kernel::Args));
}

#endif

/// At once or a little later, but in order with everything else that goes through `machine`.
template <class Kernel>
void launch(Machine& machine, const Grid& grid, typename Kernel::Args args) {
  using Args = typename Kernel::Args;
  static_assert(std::is_trivially_copyable_v<Args> && alignof(Args) <= 16);
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(std::addressof(args));  // launches are compared byte by byte
#endif
#endif
  if (!machine.queue().open()) return issue_launch<Kernel>(machine, grid, &args);
  machine.queue().add(issue_launch<Kernel>, grid, &args, sizeof args);
}

}  // namespace ballast::cuda
