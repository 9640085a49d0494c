// A file seen as read-only memory, that survives the file's being cut short by somebody else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>

namespace ballast {

/// Owns one mapping. Move-only. A page that cannot be read any more (the file shrank, the disk failed) reads
/// as zeros from then on instead of ending the process with SIGBUS, and check_intact() tells. The SIGBUS
/// handler that does so is installed with the first map and passes every other fault to the handler that was
/// there before.
class MappedFile {
 public:
  /// Throws Error for anything but a readable regular file and never blocks; with `follow_links` false, for a
  /// symbolic link too.
  static MappedFile open(const std::filesystem::path& path, bool follow_links = true);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::filesystem::path& path() const { return path_; }
  std::string_view bytes() const { return {data_, size_}; }

  /// Lets the operating system drop the whole pages inside [offset, offset + count); they are read again when
  /// touched.
  void release(uint64_t offset, uint64_t count) const;
  /// Throws Error if the file shrank or a page of it could not be read since it was opened.
  void check_intact() const;

 private:
  MappedFile() = default;

  std::filesystem::path path_;
  int file_ = -1;
  const char* data_ = nullptr;
  size_t size_ = 0;
  int slot_ = -1;  // in the table that the signal handler reads
};

}  // namespace ballast
