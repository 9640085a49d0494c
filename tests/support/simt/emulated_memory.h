// Device memory of the emulator: host memory full of NaNs, 64-byte aligned, that
// ends at a page which nobody may touch.
#pragma once

#include <cstdint>

namespace ballast::simt {

void* allocate(int64_t bytes);
void release(void* pointer) noexcept;
int64_t allocated_bytes();
/// allocate() refuses to go beyond; for tests of running out.
void set_memory_limit(int64_t bytes);

}  // namespace ballast::simt
