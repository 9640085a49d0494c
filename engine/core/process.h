// Facts about this process.
#pragma once

#include <cstdint>

namespace ballast {

/// Largest resident set so far, in bytes; 0 where the system does not say.
int64_t peak_memory_bytes();

}  // namespace ballast
