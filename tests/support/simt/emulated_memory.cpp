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

constexpr int64_t kPage = 4096, kAlignment = 64, kArena = int64_t(1) << 40;

// All of it lies in one range of addresses, so that one call opens or shuts it. What is not allocated there is the end of an
// empty file, which cannot be touched even when it is open; so every allocation ends at a wall.
class Arena {
 public:
  void* take(int64_t bytes) {
    CHECK(used_ + bytes + kPage <= kArena, "the emulator has given out all of its addresses");
    char* const base = base_ + used_;
    if (mmap(base, size_t(bytes), protection_, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
             0) == MAP_FAILED)
      return nullptr;
    used_ += bytes + kPage;
    return base;
  }
  void give_back(void* base, int64_t bytes) noexcept {
    mmap(base, size_t(bytes), protection_, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file_,
         static_cast<char*>(base) - base_);
  }
  void protect(int protection) {
    protection_ = protection;
    if (used_ > 0) CHECK(mprotect(base_, size_t(used_), protection) == 0);
  }

 private:
  int protection_ = PROT_NONE;
  int file_ = memfd_create("emulated device memory", 0);
  char* base_ =
      static_cast<char*>(mmap(nullptr, size_t(kArena), PROT_NONE, MAP_SHARED | MAP_NORESERVE, file_, 0));
  int64_t used_ = 0;
};

struct Mapping {
  void* base;
  int64_t mapped, bytes;
};
std::map<const void*, Mapping> mappings;  // by what allocate() returned
Arena arena;
int accesses = 0;
int64_t total = 0, limit = std::numeric_limits<int64_t>::max();
std::mutex mutex;

int64_t rounded(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

}  // namespace

DeviceAccess::DeviceAccess() {
  const std::lock_guard lock(mutex);
  if (accesses++ == 0) arena.protect(PROT_READ | PROT_WRITE);
}
DeviceAccess::~DeviceAccess() {
  const std::lock_guard lock(mutex);
  if (--accesses == 0) arena.protect(PROT_NONE);
}

bool is_device(const void* pointer) {
  const std::lock_guard lock(mutex);
  auto after = mappings.upper_bound(pointer);
  if (after == mappings.begin()) return false;
  const auto& [begin, mapping] = *--after;
  return static_cast<const char*>(pointer) - static_cast<const char*>(begin) <= mapping.bytes;
}

void* allocate(int64_t bytes) {
  const DeviceAccess access;
  const std::lock_guard lock(mutex);
  const int64_t used = rounded(std::max<int64_t>(bytes, 1), kAlignment);
  if (total + used > limit) return nullptr;
  const int64_t mapped = rounded(used, kPage);
  void* const base = arena.take(mapped);
  if (!base) return nullptr;
  char* const pointer = static_cast<char*>(base) + mapped - used;
  std::memset(pointer, 0xff, size_t(used));
  mappings[pointer] = {base, mapped, used};
  total += used;
  return pointer;
}

void release(void* pointer) noexcept {
  const std::lock_guard lock(mutex);
  const auto found = mappings.find(pointer);
  if (found == mappings.end()) return;
  arena.give_back(found->second.base, found->second.mapped);
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
