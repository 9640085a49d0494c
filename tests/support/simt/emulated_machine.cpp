// The runtime of kernels/cuda on the emulator: device memory is host memory, the stream is the calling thread.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "tests/support/simt/block_emulator.h"
#include "tests/support/simt/emulated_memory.h"

namespace ballast::cuda {
namespace {

using simt::DeviceAccess;

// Kernels reach device memory only. Anything in a launch's arguments that looks like an address must be one there; what
// merely looks like one is not mapped.
void check_addresses(const void* args, size_t bytes) {
  constexpr uintptr_t kLeast = uintptr_t(1) << 40, kMost = uintptr_t(1) << 47, kPage = 4096;
  for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
    uintptr_t word;
    std::memcpy(&word, static_cast<const char*>(args) + at, sizeof word);
    if (word < kLeast || word >= kMost || simt::is_device(reinterpret_cast<const void*>(word))) continue;
    unsigned char resident;
    if (mincore(reinterpret_cast<void*>(word / kPage * kPage), kPage, &resident) == 0)
      throw simt::Fault(str("byte ", at, " of a launch's arguments is an address in host memory"));
  }
}

// What a recording holds: work on the stream, its arguments as they were. Like a stream that is captured, it refuses calls that
// cannot be part of a graph.
using Work = std::vector<std::function<void()>>;
Work* recorded = nullptr;
bool released_in_recording = false;

void refuse_recording(bool refused, const char* what) {
  if (recorded && refused) throw simt::Fault(str(what, " in what is recorded"));
}
void put_on_stream(std::function<void()> work) {
  if (recorded) return recorded->push_back(std::move(work));
  work();
}

}  // namespace

std::string why_unavailable() {
  return "";
}

struct Machine::State {};

Machine::Machine() {
  // Few multiprocessors: with more, the small layers of tests would have a block of their own for every item.
  facts_ = {.name = "block emulator",
            .major = 9,
            .minor = 0,
            .multiprocessors = 3,
            .memory_bytes = int64_t(1) << 34,
            .cache_bytes = int64_t(1) << 20,
            .shared_bytes = 227 << 10};
}
Machine::~Machine() {
  queue_.flush_quietly();
}

void* Machine::allocate(int64_t bytes) {
  refuse_recording(true, "an allocation");
  void* pointer = simt::allocate(bytes);
  if (!pointer) throw RuntimeFailure(str("out of device memory: ", bytes, " bytes were asked for"));
  return pointer;
}
void Machine::release(void* pointer) noexcept {
  released_in_recording |= recorded != nullptr;
  queue_.flush_quietly();
  simt::release(pointer);
}
void Machine::copy_in(void* to, const void* from, int64_t bytes) {
  queue_.flush();
  copy_ahead(to, from, bytes);
}
void Machine::copy_ahead(void* to, const void* from, int64_t bytes) {
  refuse_recording(!simt::is_device(from), "a copy from the host");
  put_on_stream([=] {
    const DeviceAccess access;
    std::memcpy(to, from, size_t(bytes));
  });
}
void Machine::copy_out(void* to, const void* from, int64_t bytes) {
  refuse_recording(true, "a copy to the host");
  queue_.flush();
  if (simt::is_device(from)) simt::count_fetched(bytes);
  const DeviceAccess access;
  std::memcpy(to, from, size_t(bytes));
}
void Machine::clear(void* to, int64_t bytes) {
  queue_.flush();
  put_on_stream([=] {
    const DeviceAccess access;
    std::memset(to, 0, size_t(bytes));
  });
}
void Machine::wait() {
  refuse_recording(true, "waiting for the device");
  queue_.flush();
}
void* Machine::stream() const {
  return nullptr;
}

struct Recording::State {
  Work work;
};
Recording::Recording(std::unique_ptr<State> state) : state_(std::move(state)) {}
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;
Recording::~Recording() = default;

Recording Machine::record(const std::function<void()>& body) {
  const QueueShut shut(queue_);
  auto made = std::make_unique<Recording::State>();
  recorded = &made->work;
  try {
    body();
  } catch (...) {
    recorded = nullptr;
    throw;
  }
  recorded = nullptr;
  if (std::exchange(released_in_recording, false))
    throw simt::Fault("memory is released in what is recorded");
  return Recording(std::move(made));
}
void Machine::replay(const Recording& recording) {
  queue_.flush();
  for (const auto& work : recording.state_->work) work();
}
double Machine::seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  queue_.flush();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

namespace {

void multiply_now(const HalfProduct& p) {
  const DeviceAccess access;
  const auto widened = [&](const void* halves, int64_t count) {
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t half = static_cast<const uint16_t*>(halves)[i];
      values.push_back(p.type == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half));
    }
    return values;
  };
  const std::vector<float> a = widened(p.a, p.rows * p.inner), b = widened(p.b, p.columns * p.inner);
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t column = 0; column < p.columns; ++column) {
      double sum = 0;
      for (int64_t k = 0; k < p.inner; ++k)
        sum += double(a[size_t(row * p.inner + k)]) * double(b[size_t(column * p.inner + k)]);
      p.out[row * p.columns + column] = float(sum);
    }
}

}  // namespace

void Machine::multiply(const HalfProduct& p) {
  queue_.flush();
  for (const void* operand : {p.a, p.b, static_cast<const void*>(p.out)})
    CHECK(simt::is_device(operand), "cuBLASLt reaches device memory only");
  put_on_stream([p] { multiply_now(p); });
}

void launch_blocks(const Grid& grid, int threads, void (*body)(const void* args), const void* args,
                   size_t bytes) {
  check_addresses(args, bytes);
  struct alignas(16) Bytes16 {
    std::byte bytes[16];
  };
  std::vector<Bytes16> kept((bytes + sizeof(Bytes16) - 1) / sizeof(Bytes16));
  std::memcpy(kept.data(), args, bytes);
  put_on_stream([=, kept = std::move(kept)] {
    const DeviceAccess access;
    simt::run_blocks({.blocks = int(grid.blocks),
                      .blocks_y = int(grid.blocks_y),
                      .threads = threads,
                      .shared_bytes = grid.shared_bytes},
                     body, kept.data());
  });
}

}  // namespace ballast::cuda
