// The CUDA runtime as the backend uses it: one device, one stream, memory, copies, cuBLASLt. runtime.cu has it for devices,
// tests/support/simt for the emulator. Every call is checked; what fails throws RuntimeFailure naming the call.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/cuda/launch_queue.h"
#include "kernels/dtype.h"

namespace ballast::cuda {

struct MachineFacts {
  std::string name;  ///< "NVIDIA H200"
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t cache_bytes = 0;
  int64_t shared_bytes = 0;  ///< that a block may ask for
  bool graphs = false;       ///< launches are to wait for each other and go as graphs
};

/// Why no device can be used, in a few words; empty when one can. Never throws, also without a driver.
std::string why_unavailable();

/// out[rows][columns] = a[rows][inner] · b[columns][inner]ᵀ, 16-bit operands and f32 sums, all row-major and dense.
struct HalfProduct {
  DType type = DType::f16;
  const void* a = nullptr;
  const void* b = nullptr;
  float* out = nullptr;
  int64_t rows = 0, columns = 0, inner = 0;  ///< inner: a multiple of 8
};

/// Work on the stream that can be done again without the calls that it took: a CUDA graph.
class Recording {
 public:
  Recording(Recording&&) noexcept;
  Recording& operator=(Recording&&) noexcept;
  ~Recording();

 private:
  friend class Machine;
  struct State;
  explicit Recording(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class Machine {
 public:
  /// Takes the first device. Only where why_unavailable() is empty.
  Machine();
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  const MachineFacts& facts() const { return facts_; }

  /// RuntimeFailure says how much was asked for, how much is free and how much the device has.
  void* allocate(int64_t bytes);
  void release(void* pointer) noexcept;

  // All in the order of the stream. `to` and `from` may be on either side.
  void copy_in(void* to, const void* from, int64_t bytes);  ///< `from` may change when this returns
  /// The same ahead of launches in the queue, none of which may use `to`.
  void copy_ahead(void* to, const void* from, int64_t bytes);
  void copy_out(void* to, const void* from, int64_t bytes);  ///< has arrived when this returns
  void clear(void* to, int64_t bytes);                       ///< zeros
  void multiply(const HalfProduct& product);
  /// Waits for everything, and reports what went wrong in kernels on the way.
  void wait();

  /// What `body` puts on the stream, without doing it. It must neither allocate nor wait, nor copy from memory that will not
  /// be there at a replay: run it once before. Its launches do not go through the queue.
  Recording record(const std::function<void()>& body);
  void replay(const Recording& recording);
  /// Seconds between two events on the stream around what `body` puts there.
  double seconds(const std::function<void()>& body);

  void* stream() const;  ///< cudaStream_t
  LaunchQueue& queue() { return queue_; }

 private:
  struct State;
  MachineFacts facts_;
  std::unique_ptr<State> state_;
  LaunchQueue queue_{*this};
};

#if defined(__CUDACC__)
/// Throws RuntimeFailure when `error` is not cudaSuccess.
void check_call(int error, const char* call);
#endif

}  // namespace ballast::cuda
