// The thin header between kernels and the machine. Device code in this folder uses nothing else of CUDA, so the same text
// compiles twice: by nvcc into instructions (device_gpu.h), and by the host compiler into calls that the block emulator in
// tests/support/simt answers. The emulator knows more than a GPU does: it checks bounds and races of shared memory, data that
// an asynchronous copy has not delivered yet, and threads that wait for each other for ever.
//
// A warp is 32 threads, a block has one dimension of threads and a grid two of blocks. Functions marked "warp" are called by
// all 32 lanes together, functions marked "block" by all threads of a block.
//
// 16-bit floats travel in pairs, one 32-bit word each, the element with the lower index in the lower half. F16 and BF16 name
// the two formats.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

#if defined(__CUDACC__)
#define BALLAST_DEVICE __device__ __forceinline__
#define BALLAST_BOTH __host__ __device__ __forceinline__
#else
#define BALLAST_DEVICE inline
#define BALLAST_BOTH inline
#endif

namespace ballast::dev {

inline constexpr int kWarp = 32;

struct F16 {
  static constexpr DType kType = DType::f16;
};
struct BF16 {
  static constexpr DType kType = DType::bf16;
};

struct Floats2 {
  float x, y;
};
/// Bytes that one thread moves in one instruction.
struct alignas(8) Words2 {
  uint32_t x, y;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(16) Floats4 {
  float x, y, z, w;
};

}  // namespace ballast::dev

#if defined(__CUDACC__)
#include "kernels/cuda/device_gpu.h"
#else
#include "kernels/cuda/device_host.h"
#endif

namespace ballast::dev {

BALLAST_DEVICE int lane() {
  return thread() % kWarp;
}
BALLAST_DEVICE int warp() {
  return thread() / kWarp;
}

/// Hands out the block's shared memory, array by array, each 16-byte aligned; every thread takes the same ones.
class SharedArena {
 public:
  template <class T>
  BALLAST_DEVICE Shared<T> take(int count) {
    const Shared<T> array = Shared<T>::at(used_, count);
    used_ += (count * int(sizeof(T)) + 15) / 16 * 16;
    return array;
  }

 private:
  int used_ = 0;
};

/// Warp: the sum, or the largest, of all lanes' values, the same bits in each.
BALLAST_DEVICE float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}
BALLAST_DEVICE float warp_max(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value = max(value, shuffle_xor(value, step));
  return value;
}

/// Block: the largest of all threads' values. `s_partial` holds a float for every warp.
BALLAST_DEVICE float block_max(float value, Shared<float> s_partial) {
  value = warp_max(value);
  sync_block();
  if (lane() == 0) s_partial.set(warp(), value);
  sync_block();
  float top = s_partial.get(0);
  for (int i = 1; i < threads() / kWarp; ++i) top = max(top, s_partial.get(i));
  return top;
}

/// Block: the sum of all threads' values, the same bits in each. `s_partial` holds a float for every warp.
BALLAST_DEVICE float block_sum(float value, Shared<float> s_partial) {
  value = warp_sum(value);
  sync_block();
  if (lane() == 0) s_partial.set(warp(), value);
  sync_block();
  float total = 0;
  for (int i = 0; i < threads() / kWarp; ++i) total += s_partial.get(i);
  return total;
}

}  // namespace ballast::dev
