// Runs blocks of device code (kernels/cuda/device.h) on the host: every thread is a fibre, a warp's collective operations are
// meetings of its 32 fibres, a barrier is a meeting of all. Blocks run one after the other in an order that the seed chooses,
// and so do the warps that can go on, so code that leans on an order fails for some seed.
//
// A launch throws Fault, naming block and thread, when
//   - an access to shared memory leaves its array, reads what nothing wrote, or lies where an asynchronous copy that was not
//     waited for is still to land;
//   - two threads touch the same shared memory, one of them writing, without a barrier between them;
//   - lanes meet in different operations, or some threads wait for others that are gone;
//   - an asynchronous copy or a matrix row is not 16-byte aligned.
// An asynchronous copy lands when it is waited for, not before; until then its target holds NaNs.
//
// Global memory that emulated_memory.h hands out ends at a page that cannot be touched. The runtime (emulated_machine.cpp) opens
// it for launches and copies only, and refuses launches whose arguments hold an address of other memory.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace ballast::simt {

class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Launch {
  int blocks = 1, blocks_y = 1;
  int threads = 32;  ///< a multiple of 32, at most 1024
  int64_t shared_bytes = 0;
};

/// What a launch did, all blocks together.
struct Counts {
  int64_t multiplies = 0;        ///< warp mma
  int64_t matrix_loads = 0;      ///< warp ldmatrix
  int64_t matrix_conflicts = 0;  ///< further passes that rows of ldmatrix in the same banks would cost
  int64_t barriers = 0;          ///< of blocks
  int64_t copied_bytes = 0;      ///< asynchronously, zeros not counted
  int64_t launches = 0;
  int64_t fetched_bytes = 0;     ///< copied from the device to the host
};

/// Runs body(args) in every thread of every block.
void run_blocks(const Launch& launch, void (*body)(const void* args), const void* args);

/// Order of blocks and warps in the launches from here on.
void set_seed(uint64_t seed);
/// Since the last call.
Counts take_counts();
void count_fetched(int64_t bytes);

}  // namespace ballast::simt
