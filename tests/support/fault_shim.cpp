// Preloaded into a program under test: lets the n-th call that changes a file below one folder fail or end the
// process. Counted are open with O_CREAT, write, ftruncate, fsync, rename and unlink.
//
//   FAULT_PATH    part of the path of the files that count
//   FAULT_AT      the number of the call, from 1; 0 for none
//   FAULT_ACTION  kill    SIGKILL instead of the call
//                 torn    SIGKILL after half of a write, otherwise as kill
//                 full    the call and every write after it fail with ENOSPC
//                 broken  the call fails with EIO
//                 short   a write stops half-way, without an error
//   FAULT_COUNT   a file that gets the number of calls at the end of the program
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::atomic<long> g_calls{0};
std::atomic<bool> g_full{false};

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

bool counts(const char* path) {
  const char* part = variable("FAULT_PATH");
  return *part && std::strstr(path, part);
}

bool counts(int file) {
  char path[4096];
  const ssize_t size = ::readlink(("/proc/self/fd/" + std::to_string(file)).c_str(), path, sizeof path - 1);
  if (size < 0) return false;
  path[size] = '\0';
  return counts(path);
}

// The action to take now, or an empty text.
std::string action() {
  if (++g_calls != std::atol(variable("FAULT_AT"))) return {};
  return variable("FAULT_ACTION");
}

void die() {
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

// True if the call is to fail; errno is set.
bool fails(bool counted, bool takes_space) {
  if (!counted) return false;
  const std::string what = action();
  if (what == "kill" || what == "torn") die();
  if (what == "full") g_full = true;
  if (what != "broken" && what != "full" && !(g_full && takes_space)) return false;
  errno = what == "broken" ? EIO : ENOSPC;
  return true;
}

struct AtEnd {
  ~AtEnd() {
    if (FILE* file = std::fopen(variable("FAULT_COUNT"), "w")) {
      std::fprintf(file, "%ld", g_calls.load());
      std::fclose(file);
    }
  }
} g_at_end;

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    if (fails(counts(path), true)) return -1;
  }
  return next<int(const char*, int, ...)>("open")(path, flags, mode);
}

ssize_t write(int file, const void* data, size_t size) {
  const auto real = next<ssize_t(int, const void*, size_t)>("write");
  if (!counts(file)) return real(file, data, size);
  const std::string what = action();
  if (what == "kill") die();
  if (what == "torn") {
    (void)!real(file, data, size / 2);
    die();
  }
  if (what == "short" && size > 1) return real(file, data, size / 2);
  if (what == "full") g_full = true;
  if (what == "broken" || g_full) {
    errno = g_full ? ENOSPC : EIO;
    return -1;
  }
  return real(file, data, size);
}

int ftruncate(int file, off_t size) {
  return fails(counts(file), false) ? -1 : next<int(int, off_t)>("ftruncate")(file, size);
}

int fsync(int file) {
  return fails(counts(file), false) ? -1 : next<int(int)>("fsync")(file);
}

int rename(const char* from, const char* to) {
  return fails(counts(to), false) ? -1 : next<int(const char*, const char*)>("rename")(from, to);
}

int unlink(const char* path) {
  return fails(counts(path), false) ? -1 : next<int(const char*)>("unlink")(path);
}

}  // extern "C"
