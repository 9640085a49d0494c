// Device memory of the emulator: host memory full of NaNs, 64-byte aligned, that ends at a page which nobody may touch. Only
// kernels and copies can reach it; host code that follows a device pointer ends the program, as it would with a GPU.
#pragma once

#include <cstdint>

namespace ballast::simt {

void* allocate(int64_t bytes);
void release(void* pointer) noexcept;
int64_t allocated_bytes();
/// Whether the address lies in memory that allocate() handed out, or at its end.
bool is_device(const void* pointer);
/// While one is alive, device memory can be read and written. They nest.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};
/// allocate() refuses to go beyond; for tests of running out.
void set_memory_limit(int64_t bytes);

}  // namespace ballast::simt
