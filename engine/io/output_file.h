// A new file, written whole and synced, with failures that say what could not be written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace ballast {

/// Move-only owner of a file descriptor. Every failure is a RuntimeFailure naming path and reason.
class OutputFile {
 public:
  /// Creates `path`; readable too.
  explicit OutputFile(std::filesystem::path path);
  /// Goes on with the first `size` bytes of an existing file; the rest of it is cut off.
  static OutputFile continued(std::filesystem::path path, uint64_t size);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  void write(std::string_view bytes);
  /// Bytes [offset, offset + size) of what was written, into `buffer`.
  void read_at(uint64_t offset, char* buffer, size_t size) const;
  /// Gives the disk space of [offset, offset + size) back, where the file system can; the bytes become zeros.
  void discard(uint64_t offset, uint64_t size) const;
  /// Everything so far is on the disk once this returns.
  void sync() const;
  /// Gives up all bytes beyond `size`.
  void cut(uint64_t size);
  /// sync, unless not `durable`, and close.
  void finish(bool durable = true);

  uint64_t size() const { return size_; }

 private:
  OutputFile(std::filesystem::path path, int flags);
  [[noreturn]] void fail(const char* action) const;

  std::filesystem::path path_;
  int file_ = -1;
  uint64_t size_ = 0;
};

/// Writes a whole file under a temporary name beside `path` and renames it.
void replace_file(const std::filesystem::path& path, std::string_view bytes);

/// Bytes that an unprivileged process may still write where `folder` is; 2^64-1 if unknown.
uint64_t free_space(const std::filesystem::path& folder);
/// Makes renames and removals in `folder` durable.
void sync_folder(const std::filesystem::path& folder);

}  // namespace ballast
