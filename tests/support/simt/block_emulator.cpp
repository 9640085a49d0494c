#include "tests/support/simt/block_emulator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/device.h"
#include "tests/support/random.h"
#include "tests/support/simt/fibre.h"
#include "tests/support/simt/shared_memory.h"

namespace ballast::simt {
namespace {

// What a GPU of compute capability 9.0 launches.
constexpr int kWarp = dev::kWarp, kMostThreads = 1024, kMostBlocksY = 65535;
constexpr int64_t kMostShared = 227 << 10;

using Perform = void (*)(std::array<void*, kWarp>& lanes);

enum class State : uint8_t { ready, at_warp, at_block, done };

struct Copy {
  int to;
  const void* from;  ///< nullptr: zeros
};

struct Thread {
  Fibre fibre;
  State state = State::ready;
  std::vector<Copy> open;                 ///< copies not yet committed
  std::deque<std::vector<Copy>> pending;  ///< groups
};

struct Warp {
  int arrived = 0;
  const char* meeting = nullptr;
  std::array<void*, kWarp> operands{};
  uint32_t epoch = 0;
};

class Emulator {
 public:
  void run(const Launch& launch, void (*body)(const void*), const void* args);
  void suspend() { threads_[size_t(current_)]->fibre.suspend(); }
  void meet_warp(const char* what, void* operands, Perform perform);
  /// True when any thread that meets says so.
  bool meet_block(const char* what, bool mine);
  void pass_warp_barrier() { ++warps_[size_t(current_ / kWarp)].epoch; }
  Moment now() const { return {current_, block_epoch_, warps_[size_t(current_ / kWarp)].epoch}; }

  Launch launch;
  int block = 0, block_y = 0;
  int current() const { return current_; }
  Thread& thread() { return *threads_[size_t(current_)]; }
  SharedMemory shared;
  Counts counts;
  uint64_t seed = 1;
  bool running = false;

 private:
  void run_block();
  void run_warp(int warp);
  [[noreturn]] void deadlock() const;
  static void entry(void* self);

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  int current_ = 0, arrived_ = 0;
  uint32_t block_epoch_ = 0;
  const char* block_meeting_ = nullptr;
  std::array<bool, 2> any_{};  ///< of even and odd meetings: some threads still ask for the last one's
  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
  std::exception_ptr failure_;
  test::Random random_{1};
};

Emulator& emulator() {
  static Emulator instance;
  return instance;
}

void Emulator::entry(void* self) {
  auto& owner = *static_cast<Emulator*>(self);
  try {
    owner.body_(owner.args_);
  } catch (...) {
    owner.failure_ = std::current_exception();
  }
  owner.thread().state = State::done;
  while (true) owner.suspend();
}

void Emulator::run(const Launch& shape, void (*body)(const void*), const void* args) {
  CHECK(!running, "a launch inside a launch");
  CHECK(shape.threads > 0 && shape.threads % kWarp == 0 && shape.threads <= kMostThreads, shape.threads,
        " threads");
  CHECK(shape.blocks > 0 && shape.blocks_y > 0 && shape.blocks_y <= kMostBlocksY, shape.blocks, " x ",
        shape.blocks_y, " blocks");
  CHECK(shape.shared_bytes <= kMostShared, shape.shared_bytes, " bytes of shared memory");
  launch = shape;
  body_ = body;
  args_ = args;
  while (int64_t(threads_.size()) < shape.threads) threads_.push_back(std::make_unique<Thread>());
  warps_.resize(size_t(shape.threads / kWarp));
  random_ = test::Random(seed);
  ++counts.launches;
  running = true;
  try {
    for (const int32_t index : random_.permutation(int64_t(shape.blocks) * shape.blocks_y)) {
      block = index % shape.blocks;
      block_y = index / shape.blocks;
      run_block();
    }
  } catch (const Fault& fault) {
    running = false;
    throw Fault(str("block ", block, ", ", block_y, ": ", fault.what()));
  } catch (...) {
    running = false;
    throw;
  }
  running = false;
}

void Emulator::run_block() {
  shared.reset(launch.shared_bytes);
  block_epoch_ = 0;
  arrived_ = 0;
  any_ = {};
  failure_ = nullptr;
  for (Warp& warp : warps_) warp = {};
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = *threads_[size_t(i)];
    thread.state = State::ready;
    thread.open.clear();
    thread.pending.clear();
    thread.fibre.start(entry, this);
  }
  std::vector<int> runnable;
  while (true) {
    runnable.clear();
    bool all_done = true;
    for (int warp = 0; warp < int(warps_.size()); ++warp) {
      bool ready = false;
      for (int i = warp * kWarp; i < (warp + 1) * kWarp; ++i) {
        ready |= threads_[size_t(i)]->state == State::ready;
        all_done &= threads_[size_t(i)]->state == State::done;
      }
      if (ready) runnable.push_back(warp);
    }
    if (all_done) return;
    if (runnable.empty()) deadlock();
    // One warp goes as far as it can before another has its turn: as unlike lockstep as can be.
    run_warp(runnable[size_t(random_.below(int64_t(runnable.size())))]);
  }
}

void Emulator::run_warp(int warp) {
  for (bool any = true; any;) {
    any = false;
    for (int i = warp * kWarp; i < (warp + 1) * kWarp; ++i) {
      Thread& thread = *threads_[size_t(i)];
      if (thread.state != State::ready) continue;
      any = true;
      current_ = i;
      thread.fibre.resume();
      if (failure_) std::rethrow_exception(failure_);
    }
  }
}

void Emulator::deadlock() const {
  std::string text;
  for (int warp = 0; warp < int(warps_.size()); ++warp) {
    int at_warp = 0, at_block = 0, done = 0;
    for (int i = warp * kWarp; i < (warp + 1) * kWarp; ++i) {
      const State state = threads_[size_t(i)]->state;
      at_warp += state == State::at_warp, at_block += state == State::at_block, done += state == State::done;
    }
    text +=
        str(text.empty() ? "" : "; ", "warp ", warp, ": ", at_block, " threads at the barrier, ", at_warp,
            " in ", at_warp > 0 ? warps_[size_t(warp)].meeting : "a warp's operation", ", ", done, " gone");
  }
  throw Fault("threads wait for ever: " + text);
}

void Emulator::meet_warp(const char* what, void* operands, Perform perform) {
  const int self = current_;
  Warp& warp = warps_[size_t(self / kWarp)];
  if (warp.arrived > 0 && warp.meeting != what)
    throw Fault(str("thread ", self, " is in ", what, ", other lanes of its warp in ", warp.meeting));
  warp.meeting = what;
  warp.operands[size_t(self % kWarp)] = operands;
  threads_[size_t(self)]->state = State::at_warp;
  if (++warp.arrived < kWarp) return suspend();
  warp.arrived = 0;
  if (perform) perform(warp.operands);
  for (int i = self / kWarp * kWarp; i < (self / kWarp + 1) * kWarp; ++i)
    threads_[size_t(i)]->state = State::ready;
}

bool Emulator::meet_block(const char* what, bool mine) {
  const int self = current_;
  if (arrived_ > 0 && block_meeting_ != what)
    throw Fault(str("thread ", self, " is in ", what, ", other threads of its block in ", block_meeting_));
  block_meeting_ = what;
  bool& any = any_[block_epoch_ % 2];
  any |= mine;
  threads_[size_t(self)]->state = State::at_block;
  if (++arrived_ < launch.threads) {
    suspend();
    return any;
  }
  arrived_ = 0;
  ++block_epoch_;
  any_[block_epoch_ % 2] = false;
  ++counts.barriers;
  for (int i = 0; i < launch.threads; ++i) threads_[size_t(i)]->state = State::ready;
  return any;
}

}  // namespace

void run_blocks(const Launch& launch, void (*body)(const void*), const void* args) {
  emulator().run(launch, body, args);
}

void set_seed(uint64_t seed) {
  emulator().seed = seed;
}

void count_fetched(int64_t bytes) {
  emulator().counts.fetched_bytes += bytes;
}

Counts take_counts() {
  return std::exchange(emulator().counts, {});
}

}  // namespace ballast::simt

// What device_host.h declares.
namespace ballast::dev {

using simt::emulator;
using simt::Fault;

int thread() {
  return emulator().current();
}
int threads() {
  return emulator().launch.threads;
}
int block() {
  return emulator().block;
}
int blocks() {
  return emulator().launch.blocks;
}
int block_y() {
  return emulator().block_y;
}

char* shared_bytes(int first, int bytes, int begin, int end, SharedAccess access) {
  auto& shared = emulator().shared;
  if (access == SharedAccess::read) {
    shared.read(emulator().now(), first, bytes, begin, end);
  } else {
    shared.write(emulator().now(), first, bytes, begin, end);
  }
  return shared.data() + first;
}

void sync_block() {
  emulator().meet_block("sync_block", false);
}
bool sync_block_any(bool mine) {
  return emulator().meet_block("sync_block_any", mine);
}

void sync_warp() {
  emulator().meet_warp("sync_warp", nullptr,
                       [](std::array<void*, kWarp>&) { emulator().pass_warp_barrier(); });
}

namespace {

template <class Value>
struct Shuffle {
  Value value, result;
  int source;
};
template <class Value>
Value shuffle_from(Value value, int source, const char* name) {
  Shuffle<Value> operands{value, value, source};
  emulator().meet_warp(name, &operands, [](std::array<void*, kWarp>& lanes) {
    for (void* lane : lanes) {
      auto& own = *static_cast<Shuffle<Value>*>(lane);
      if (own.source < 0 || own.source >= kWarp) throw Fault(str("a shuffle from lane ", own.source));
      own.result = static_cast<Shuffle<Value>*>(lanes[size_t(own.source)])->value;
    }
  });
  return operands.result;
}

}  // namespace

float shuffle_xor(float value, int mask) {
  return shuffle_from(value, (thread() % kWarp) ^ mask, "shuffle_xor");
}
int shuffle_xor(int value, int mask) {
  return shuffle_from(value, (thread() % kWarp) ^ mask, "shuffle_xor of integers");
}
float shuffle(float value, int source) {
  return shuffle_from(value, source, "shuffle");
}

void copy_async(int to, int begin, int end, const void* from, bool there) {
  if (there && reinterpret_cast<uintptr_t>(from) % 16 != 0)
    throw Fault(str("thread ", thread(), " copies from a place that is not 16-byte aligned"));
  emulator().shared.promise(emulator().now(), to, begin, end);
  emulator().thread().open.push_back({to, there ? from : nullptr});
  if (there) emulator().counts.copied_bytes += 16;
}

void copy_commit() {
  auto& own = emulator().thread();
  own.pending.push_back(std::exchange(own.open, {}));
}

void copy_wait_for(int pending) {
  static constexpr char kZeros[16] = {};
  auto& own = emulator().thread();
  while (int(own.pending.size()) > pending) {
    for (const auto& copy : own.pending.front())
      emulator().shared.landed(emulator().now(), copy.to,
                               copy.from ? static_cast<const char*>(copy.from) : kZeros);
    own.pending.pop_front();
  }
}

namespace {

struct MatrixLoad {
  uint32_t* r;
  int row;
};

// Rows of a matrix in the same 16 bytes modulo 128 are read one after the other.
int64_t further_passes(const std::array<void*, kWarp>& lanes, int matrix) {
  std::array<std::vector<int>, 8> rows;
  size_t most = 1;
  for (int i = 0; i < 8; ++i) {
    const int row = static_cast<MatrixLoad*>(lanes[size_t(8 * matrix + i)])->row;
    auto& bank = rows[size_t(row / 16 % 8)];
    if (std::find(bank.begin(), bank.end(), row) == bank.end()) bank.push_back(row);
    most = std::max(most, bank.size());
  }
  return int64_t(most) - 1;
}

void load_rows(std::array<void*, kWarp>& lanes) {
  auto& shared = emulator().shared;
  ++emulator().counts.matrix_loads;
  for (int matrix = 0; matrix < 4; ++matrix) {
    emulator().counts.matrix_conflicts += further_passes(lanes, matrix);
    for (int i = 0; i < kWarp; ++i) {
      const int row = static_cast<MatrixLoad*>(lanes[size_t(8 * matrix + i / 4)])->row;
      std::memcpy(static_cast<MatrixLoad*>(lanes[size_t(i)])->r + matrix, shared.data() + row + 4 * (i % 4),
                  4);
    }
  }
}

}  // namespace

void load_matrices(uint32_t (&r)[4], Shared<uint16_t> row) {
  if (row.address() % 16 != 0)
    throw Fault(str("thread ", thread(), " names a matrix row that is not 16-byte aligned"));
  emulator().shared.read(emulator().now(), row.address(), 16, row.begin(), row.end());
  MatrixLoad operands{r, row.address()};
  emulator().meet_warp("load_matrices", &operands, load_rows);
}

namespace {

struct Multiply {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
  DType type;
};

double half_of(uint32_t pair, int which, DType type) {
  const auto bits = uint16_t(pair >> 16 * which);
  return type == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// Sums in f64, rounded once: a device rounds (or cuts) several times on the way.
void multiply_tiles(std::array<void*, kWarp>& lanes) {
  ++emulator().counts.multiplies;
  double a[16][16], b[16][8];
  for (int i = 0; i < kWarp; ++i) {
    const auto& own = *static_cast<Multiply*>(lanes[size_t(i)]);
    const int r = i / 4, t = 2 * (i % 4);
    for (int part = 0; part < 4; ++part)
      for (int e = 0; e < 2; ++e)
        a[r + 8 * (part % 2)][t + 8 * (part / 2) + e] = half_of(own.a[part], e, own.type);
    for (int part = 0; part < 2; ++part)
      for (int e = 0; e < 2; ++e) b[t + 8 * part + e][r] = half_of(own.b[part], e, own.type);
  }
  for (int i = 0; i < kWarp; ++i) {
    const auto& own = *static_cast<Multiply*>(lanes[size_t(i)]);
    for (int part = 0; part < 4; ++part) {
      const int row = i / 4 + 8 * (part / 2), column = 2 * (i % 4) + part % 2;
      double sum = double(own.c[part]);
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      own.c[part] = float(sum);
    }
  }
}

}  // namespace

void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, DType type) {
  Multiply operands{c, a, {b0, b1}, type};
  emulator().meet_warp("multiply_add", &operands, multiply_tiles);
}

int atomic_add(int* counter, int value) {
  return std::exchange(*counter, *counter + value);
}
void fence() {}

}  // namespace ballast::dev
