#include "engine/io/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/check.h"

namespace ballast {

OutputFile::OutputFile(std::filesystem::path path) : OutputFile(std::move(path), O_CREAT | O_EXCL) {}

OutputFile::OutputFile(std::filesystem::path path, int flags)
    : path_(std::move(path)), file_(::open(path_.c_str(), flags | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0666)) {
  if (file_ < 0) fail(flags & O_CREAT ? "create" : "open");
}

OutputFile OutputFile::continued(std::filesystem::path path, uint64_t size) {
  OutputFile file(std::move(path), 0);
  file.cut(size);
  return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)), size_(other.size_) {}

OutputFile::~OutputFile() {
  if (file_ >= 0) ::close(file_);
}

void OutputFile::fail(const char* action) const {
  throw RuntimeFailure(str(path_.string(), ": cannot ", action, ": ", std::strerror(errno)));
}

void OutputFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(file_, bytes.data(), std::min(bytes.size(), size_t(1) << 30));
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) errno = ENOSPC;  // a short write without a reason: the next one would have said so
    if (count <= 0) fail("write");
    bytes.remove_prefix(size_t(count));
    size_ += uint64_t(count);
  }
}

void OutputFile::read_at(uint64_t offset, char* buffer, size_t size) const {
  while (size > 0) {
    const ssize_t count = ::pread(file_, buffer, size, off_t(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) errno = EIO;
    if (count <= 0) fail("read back");
    buffer += count;
    offset += uint64_t(count);
    size -= size_t(count);
  }
}

void OutputFile::discard(uint64_t offset, uint64_t size) const {
  if (size > 0)
    (void)::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(offset), off_t(size));
}

void OutputFile::sync() const {
  while (::fsync(file_) != 0)
    if (errno != EINTR) fail("write to disk");
}

void OutputFile::cut(uint64_t size) {
  if (::ftruncate(file_, off_t(size)) != 0 || ::lseek(file_, off_t(size), SEEK_SET) < 0) fail("shorten");
  size_ = size;
}

void OutputFile::finish(bool durable) {
  if (durable) sync();
  if (::close(std::exchange(file_, -1)) != 0) fail("close");
}

void replace_file(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::path temporary = path;
  temporary += ".writing";
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  try {
    OutputFile file(temporary);
    file.write(bytes);
    file.finish();
    std::filesystem::rename(temporary, path);
  } catch (...) {
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

uint64_t free_space(const std::filesystem::path& folder) {
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0) return UINT64_MAX;
  return uint64_t(status.f_bavail) * status.f_frsize;
}

void sync_folder(const std::filesystem::path& folder) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool failed = file < 0 || ::fsync(file) != 0;
  const int reason = errno;
  if (file >= 0) ::close(file);
  // EINVAL: a file system without folder syncs has nothing to make durable.
  if (failed && reason != EINVAL)
    throw RuntimeFailure(str(folder.string(), ": cannot write to disk: ", std::strerror(reason)));
}

}  // namespace ballast
