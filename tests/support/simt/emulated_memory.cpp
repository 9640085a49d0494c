#include "tests/support/simt/emulated_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "kernels/check.h"

namespace ballast::simt {
namespace {

constexpr int64_t kPage = 4096, kAlignment = 64;

struct Mapping {
  void* base;
  int64_t mapped, bytes;
};
std::map<void*, Mapping> mappings;
int64_t total = 0, limit = std::numeric_limits<int64_t>::max();
std::mutex mutex;

int64_t rounded(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

}  // namespace

void* allocate(int64_t bytes) {
  const std::lock_guard lock(mutex);
  const int64_t used = rounded(std::max<int64_t>(bytes, 1), kAlignment);
  if (total + used > limit) return nullptr;
  const int64_t mapped = rounded(used, kPage) + kPage;
  void* base = mmap(nullptr, size_t(mapped), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  char* const wall = static_cast<char*>(base) + mapped - kPage;
  CHECK(mprotect(wall, size_t(kPage), PROT_NONE) == 0);
  char* const pointer = wall - used;
  std::memset(pointer, 0xff, size_t(used));
  mappings[pointer] = {base, mapped, used};
  total += used;
  return pointer;
}

void release(void* pointer) noexcept {
  const std::lock_guard lock(mutex);
  const auto found = mappings.find(pointer);
  if (found == mappings.end()) return;
  munmap(found->second.base, size_t(found->second.mapped));
  total -= found->second.bytes;
  mappings.erase(found);
}

int64_t allocated_bytes() {
  const std::lock_guard lock(mutex);
  return total;
}

void set_memory_limit(int64_t bytes) {
  const std::lock_guard lock(mutex);
  limit = bytes;
}

}  // namespace ballast::simt
