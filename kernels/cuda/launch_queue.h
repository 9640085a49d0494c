// Kernels that were launched but not yet given to the device. They wait until the host wants to see something or to change
// memory that they may use; then all go at once, as a CUDA graph where the same ones, with the same arguments, went before. A
// decode step differs from the last one only in numbers that kernels read from device memory (Uploads in cuda_backend.h), so its
// hundreds of launches are one. Nothing is assumed of what a step is: a graph is used only where every launch is the recorded
// one, to the last byte of its arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <set>
#include <vector>

namespace ballast::cuda {

class Machine;
class Recording;

struct Grid {
  int64_t blocks = 1, blocks_y = 1;
  int64_t shared_bytes = 0;
  bool operator==(const Grid&) const = default;
};

/// Gives one kernel to the device. One function for each kernel, so it names the kernel, too.
using IssueLaunch = void (*)(Machine& machine, const Grid& grid, const void* args);

class LaunchQueue {
 public:
  explicit LaunchQueue(Machine& machine);
  LaunchQueue(const LaunchQueue&) = delete;
  LaunchQueue& operator=(const LaunchQueue&) = delete;
  ~LaunchQueue();

  /// Whether launches wait. Where they do not, there are no graphs either.
  bool open() const { return open_; }
  void open(bool open);
  /// The same for a queue that nothing waits in.
  void reopen(bool open) noexcept { open_ = open; }

  /// `args`: `bytes` of a trivially copyable struct, padding cleared.
  void add(IssueLaunch issue, const Grid& grid, const void* args, size_t bytes);
  /// Gives everything to the device.
  void flush();
  /// The same where nothing may be thrown; the next flush() throws instead.
  void flush_quietly() noexcept;
  /// Grows with every flush.
  int64_t epoch() const { return epoch_; }
  /// How often a graph took the place of launches.
  int64_t replays() const { return replays_; }

 private:
  struct Entry {
    IssueLaunch issue;
    Grid grid;
    size_t at;  ///< of its arguments
    bool operator==(const Entry&) const = default;
  };
  struct alignas(16) Bytes16 {
    std::byte bytes[16];
    bool operator==(const Bytes16&) const = default;
  };
  struct Launches {
    std::vector<Entry> entries;
    std::vector<Bytes16> args;
    uint64_t hash() const;
    bool operator==(const Launches&) const = default;
  };
  struct Graph;

  void issue(const Launches& launches);
  void give(Launches launches);

  Machine& machine_;
  bool open_ = false;
  Launches waiting_;
  std::set<uint64_t> seen_;                   ///< hashes of what went without a graph
  std::list<std::unique_ptr<Graph>> graphs_;  ///< the last one used comes first
  std::exception_ptr failed_;
  int64_t epoch_ = 0, replays_ = 0;
};

/// Launches while one is alive do not wait.
class QueueShut {
 public:
  explicit QueueShut(LaunchQueue& queue) : queue_(queue), was_open_(queue.open()) { queue_.open(false); }
  QueueShut(const QueueShut&) = delete;
  QueueShut& operator=(const QueueShut&) = delete;
  ~QueueShut() { queue_.reopen(was_open_); }

 private:
  LaunchQueue& queue_;
  bool was_open_;
};

}  // namespace ballast::cuda
