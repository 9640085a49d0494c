#include "engine/io/process_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/check.h"

namespace ballast {
namespace {

// The id that the holder wrote; anything else in the file is not repeated.
std::string holder(int file) {
  char text[20];
  const ssize_t count = std::max<ssize_t>(0, ::pread(file, text, sizeof text, 0));
  const bool digits =
      count > 0 && std::all_of(text, text + count, [](char c) { return c >= '0' && c <= '9'; });
  return digits ? str("process ", std::string(text, size_t(count))) : "another process";
}

bool same_file(const std::filesystem::path& path, int file) {
  struct stat named {
  }, held{};
  return ::lstat(path.c_str(), &named) == 0 && ::fstat(file, &held) == 0 && named.st_ino == held.st_ino &&
         named.st_dev == held.st_dev;
}

}  // namespace

ProcessLock::ProcessLock(const std::filesystem::path& path, const std::string& what) {
  // The last holder may have removed the file between the two calls: then the lock is on a file without a name.
  do {
    if (file_ >= 0) ::close(file_);
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (file_ < 0) throw Error(str(what, ": cannot write ", path.string(), ": ", std::strerror(errno)));
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
      const int reason = errno;
      const std::string owner = holder(file_);
      ::close(file_);
      throw Error(reason == EWOULDBLOCK ? str(what, ": ", owner, " is at work there")
                                        : str(path.string(), ": cannot lock: ", std::strerror(reason)));
    }
  } while (!same_file(path, file_));
  const std::string id = std::to_string(::getpid());
  // It serves messages only, so a full disk may keep it from being written.
  if (::ftruncate(file_, 0) == 0) (void)!::pwrite(file_, id.data(), id.size(), 0);
}

ProcessLock::~ProcessLock() {
  ::close(file_);
}

}  // namespace ballast
