// One process at a time: a locked file that says whose lock it is.
#pragma once

#include <filesystem>
#include <string>

namespace ballast {

/// Holds flock on a file with this process's id in it. The system takes the lock back however the process ends,
/// so there are no stale locks, whatever the file says.
class ProcessLock {
 public:
  /// Creates the file; its folder must exist. Error that begins with `what` and names the other process's id if
  /// the lock is taken, or the reason why the file cannot be created.
  ProcessLock(const std::filesystem::path& file, const std::string& what);
  ProcessLock(const ProcessLock&) = delete;
  ProcessLock& operator=(const ProcessLock&) = delete;
  /// The file stays: removing it is safe only for who holds the lock.
  ~ProcessLock();

 private:
  int file_ = -1;
};

}  // namespace ballast
