#include "engine/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

#include "kernels/check.h"

namespace ballast {
namespace {

/// What the signal handler may read: lock-free atomics in static storage. A slot is free while `begin` is 0.
struct Slot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> damaged{false};
};
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

constexpr int kMaxMaps = 4096;
std::array<Slot, kMaxMaps> g_slots;
std::atomic<int> g_slots_used{0};  // slots below this index may be in use
std::mutex g_slots_mutex;          // guards taking and freeing slots, never taken in the handler
struct sigaction g_previous {};
uintptr_t g_page = 4096;

/// Puts zeros from the faulting page to the end of its map: what follows a missing page of a shortened file
/// is missing as well. False if the address is in none of our maps.
bool patch_map(uintptr_t address) {
  const int used = g_slots_used.load(std::memory_order_acquire);
  for (int i = 0; i < used; ++i) {
    Slot& slot = g_slots[size_t(i)];
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    const uintptr_t end = slot.end.load(std::memory_order_relaxed);
    if (begin == 0 || address < begin || address >= end) continue;
    slot.damaged.store(true, std::memory_order_release);
    const uintptr_t page = address & ~(g_page - 1);
    return ::mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const bool from_fault = info->si_code > 0;  // else sent by kill(), and si_addr means nothing
  if (from_fault && patch_map(reinterpret_cast<uintptr_t>(info->si_addr))) {
    errno = saved_errno;
    return;
  }
  if (g_previous.sa_flags & SA_SIGINFO) {
    g_previous.sa_sigaction(signal, info, context);
  } else if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal);
  } else if (from_fault || g_previous.sa_handler == SIG_DFL) {
    // The default action: a fault happens again on return, a sent signal has to be sent again.
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(signal, &standard, nullptr);
    if (!from_fault) ::raise(signal);
  }
  errno = saved_errno;
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    g_page = uintptr_t(::sysconf(_SC_PAGESIZE));
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigemptyset(&action.sa_mask);
    // The old action is fetched first: a fault of another thread may reach the handler before sigaction()
    // returns.
    CHECK(::sigaction(SIGBUS, nullptr, &g_previous) == 0 && ::sigaction(SIGBUS, &action, nullptr) == 0);
  });
}

/// Index of the slot, or -1 when all are taken.
int take_slot(const void* data, size_t size) {
  const std::lock_guard lock(g_slots_mutex);
  for (int i = 0; i < kMaxMaps; ++i) {
    Slot& slot = g_slots[size_t(i)];
    if (slot.begin.load(std::memory_order_relaxed) != 0) continue;
    slot.damaged.store(false, std::memory_order_relaxed);
    slot.end.store(reinterpret_cast<uintptr_t>(data) + size, std::memory_order_relaxed);
    slot.begin.store(reinterpret_cast<uintptr_t>(data), std::memory_order_release);
    if (i >= g_slots_used.load(std::memory_order_relaxed))
      g_slots_used.store(i + 1, std::memory_order_release);
    return i;
  }
  return -1;
}

void free_slot(int index) {
  const std::lock_guard lock(g_slots_mutex);
  g_slots[size_t(index)].begin.store(0, std::memory_order_release);
}

}  // namespace

MappedFile MappedFile::open(const std::filesystem::path& path, bool follow_links) {
  const auto fail = [&](const std::string& reason) { throw Error(path.string() + ": " + reason); };
  install_handler();
  MappedFile map;
  map.path_ = path;
  map.file_ =
      ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | (follow_links ? 0 : O_NOFOLLOW));
  if (map.file_ < 0) {
    if (!follow_links && errno == ELOOP) fail("is a symbolic link, which strict paths refuse");
    fail(str("cannot open: ", std::strerror(errno)));
  }
  struct stat status {};
  if (::fstat(map.file_, &status) != 0) fail(str("cannot open: ", std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) fail("is not a regular file");
  map.size_ = size_t(status.st_size);
  if (map.size_ == 0) return map;
  void* data = ::mmap(nullptr, map.size_, PROT_READ, MAP_PRIVATE, map.file_, 0);
  if (data == MAP_FAILED) {
    map.size_ = 0;
    fail(str("cannot map: ", std::strerror(errno)));
  }
  map.data_ = static_cast<const char*>(data);
  map.slot_ = take_slot(data, map.size_);
  if (map.slot_ < 0) fail(str("more than ", kMaxMaps, " files are mapped"));
  return map;
}

MappedFile::MappedFile(MappedFile&& other) noexcept {
  *this = std::move(other);
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(slot_, other.slot_);
  return *this;
}

MappedFile::~MappedFile() {
  if (slot_ >= 0) free_slot(slot_);
  if (data_) ::munmap(const_cast<char*>(data_), size_);
  if (file_ >= 0) ::close(file_);
}

void MappedFile::release(uint64_t offset, uint64_t count) const {
  CHECK(offset <= size_ && count <= size_ - offset);
  const uint64_t first = (offset + g_page - 1) / g_page * g_page;
  const uint64_t last = (offset + count) / g_page * g_page;
  // Advice only: a system that does not take it keeps the pages.
  if (first < last) (void)::madvise(const_cast<char*>(data_) + first, last - first, MADV_DONTNEED);
}

void MappedFile::check_intact() const {
  if (slot_ < 0) return;
  struct stat status {};
  // Bytes cut off inside the last page read as zeros without a fault, so the size is looked at as well.
  const bool shrank = ::fstat(file_, &status) != 0 || uint64_t(status.st_size) < size_;
  if (shrank)
    throw Error(str(path_.string(), ": the file shrank while it was in use, from ", size_, " to ",
                    status.st_size, " bytes"));
  if (g_slots[size_t(slot_)].damaged.load(std::memory_order_acquire))
    throw Error(path_.string() +
                ": a part of the file could not be read (it was cut short, or the disk failed)");
}

}  // namespace ballast
