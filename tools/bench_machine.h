// What this machine can do at most, measured in the process whose figures are compared with it.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/backend.h"
#include "tools/bench_samples.h"

namespace ballast {

/// Working sets beyond this are read at the rate of memory, whatever the caches.
inline constexpr int64_t kLargestSet = int64_t(512) << 20;

/// Reads a buffer with all threads of a backend, each its own part of it, over and over.
class MemoryReader {
 public:
  explicit MemoryReader(Backend& backend) : backend_(backend) {}
  /// Bytes per second of the best of several passes over `bytes` (at most kLargestSet) in about a tenth of a second.
  /// Call it next to what is compared with it: a virtual machine's rate doubles or halves with where the host puts
  /// its processors.
  double rate(int64_t bytes);

 private:
  double pass(int64_t words);

  Backend& backend_;
  std::vector<uint64_t> buffer_;
};

/// Calls body() between two reads, again while the rates differ by more than a fifth and `again`, which then falls, is
/// above 0: the host has moved this machine's processors meanwhile, and neither rate belongs to the measurement. Returns
/// the higher rate. `before`: of the last read so far; then of the one behind the body.
template <class Read, class Body>
double steady_rate(double& before, int64_t& again, const Read& read, const Body& body) {
  while (true) {
    body();
    const double after = read(), lower = std::min(before, after), higher = std::max(before, after);
    before = after;
    if (lower >= 0.8 * higher || again == 0) return higher;
    --again;
  }
}

/// Fused multiply-adds of f32 per second that all threads reach with operands in registers, the best of several
/// runs; vectors as wide as the processor has.
double peak_multiply_adds(Backend& backend);

/// processor, flags (those that choose kernels), processors, date.
nlohmann::json machine_facts();

}  // namespace ballast
