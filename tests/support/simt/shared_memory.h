// Shared memory of one block with a memory of its own: who touched each pair of bytes last, and when.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ballast::simt {

/// A thread at a point of its life: barriers of the block and of its warp that it has passed.
struct Moment {
  int thread = 0;
  uint32_t block_epoch = 0, warp_epoch = 0;
};

class SharedMemory {
 public:
  void reset(int64_t bytes);
  int64_t size() const { return length_; }
  char* data() { return reinterpret_cast<char*>(words_.data()); }

  /// Each throws Fault when the access is wrong. [begin, end) is the array.
  void read(const Moment& now, int first, int bytes, int begin, int end);
  void write(const Moment& now, int first, int bytes, int begin, int end);
  /// A copy was begun; `landed` when it is waited for.
  void promise(const Moment& now, int first, int begin, int end);
  void landed(const Moment& now, int first, const char* from);

 private:
  static constexpr int kCell = 2;  ///< bytes
  static constexpr int kNobody = -1, kLanes = -2, kWarps = -3;
  struct Touch {
    int thread = kNobody;  ///< or several, of one warp or of more
    int warp = 0;
    uint32_t block_epoch = 0, warp_epoch = 0;
  };
  struct Cell {
    Touch write, read;
    int promised = kNobody;  ///< the thread whose copy is on its way
  };
  struct alignas(16) Line {
    char bytes[16];
  };

  void check_bounds(const Moment& now, int first, int bytes, int begin, int end, const char* what) const;
  void check_apart(const Moment& now, const Touch& before, int byte, const char* what) const;
  static bool together(const Moment& now, const Touch& before);
  static void note(Touch& touch, const Moment& now, bool sole);

  std::vector<Line> words_;
  std::vector<Cell> cells_;
  int64_t length_ = 0;
};

}  // namespace ballast::simt
