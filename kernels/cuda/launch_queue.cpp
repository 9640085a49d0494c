#include "kernels/cuda/launch_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace ballast::cuda {
namespace {

// Fewer launches are not worth a graph.
constexpr size_t kLeastLaunches = 8;
// A graph for each size of a batch and each range of its lengths.
constexpr size_t kMostGraphs = 64;
constexpr size_t kMostSeen = 4096;

}  // namespace

struct LaunchQueue::Graph {
  uint64_t hash;
  Launches launches;
  Recording recording;
};

LaunchQueue::LaunchQueue(Machine& machine) : machine_(machine) {}
LaunchQueue::~LaunchQueue() = default;

void LaunchQueue::open(bool open) {
  flush();
  open_ = open;
}

// FNV over whole words.
uint64_t LaunchQueue::Launches::hash() const {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&](uint64_t word) { hash = (hash ^ word ^ hash >> 29) * 0x100000001b3u; };
  for (const Entry& entry : entries) {
    mix(reinterpret_cast<uintptr_t>(entry.issue));
    mix(uint64_t(entry.grid.blocks));
    mix(uint64_t(entry.grid.blocks_y));
  }
  for (const Bytes16& bytes : args) {
    uint64_t words[2];
    std::memcpy(words, bytes.bytes, sizeof words);
    mix(words[0]);
    mix(words[1]);
  }
  return hash;
}

void LaunchQueue::add(IssueLaunch kernel, const Grid& grid, const void* args, size_t bytes) {
  const size_t at = waiting_.args.size();
  waiting_.args.resize(at + (bytes + sizeof(Bytes16) - 1) / sizeof(Bytes16));
  std::memcpy(waiting_.args.data() + at, args, bytes);
  waiting_.entries.push_back({kernel, grid, at});
}

void LaunchQueue::issue(const Launches& launches) {
  for (const Entry& entry : launches.entries)
    entry.issue(machine_, entry.grid, launches.args.data() + entry.at);
}

void LaunchQueue::give(Launches launches) {
  if (launches.entries.size() < kLeastLaunches) return issue(launches);
  const uint64_t hash = launches.hash();
  auto graph = std::find_if(graphs_.begin(), graphs_.end(), [&](const std::unique_ptr<Graph>& known) {
    return known->hash == hash && known->launches == launches;
  });
  if (graph == graphs_.end()) {
    // Recorded the second time: much, like most prompts, never comes again, and the first time may load kernels.
    if (seen_.size() >= kMostSeen) seen_.clear();
    if (seen_.insert(hash).second) return issue(launches);
    if (graphs_.size() >= kMostGraphs) graphs_.pop_back();
    Recording recording = machine_.record([this, launches] { issue(launches); });
    graphs_.push_front(std::make_unique<Graph>(Graph{hash, std::move(launches), std::move(recording)}));
    graph = graphs_.begin();
  }
  graphs_.splice(graphs_.begin(), graphs_, graph);
  ++replays_;
  machine_.replay(graphs_.front()->recording);
}

void LaunchQueue::flush() {
  ++epoch_;
  if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
  if (!waiting_.entries.empty()) give(std::exchange(waiting_, {}));
}

void LaunchQueue::flush_quietly() noexcept {
  try {
    flush();
  } catch (...) {
    failed_ = std::current_exception();
  }
}

}  // namespace ballast::cuda
