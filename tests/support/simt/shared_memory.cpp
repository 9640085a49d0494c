#include "tests/support/simt/shared_memory.h"

#include <cstring>

#include "kernels/check.h"
#include "tests/support/simt/block_emulator.h"

namespace ballast::simt {

void SharedMemory::reset(int64_t bytes) {
  length_ = bytes;
  words_.resize(size_t((bytes + 15) / 16));
  std::memset(static_cast<void*>(words_.data()), 0xff, words_.size() * sizeof(Line));
  cells_.assign(size_t((bytes + kCell - 1) / kCell), {});
}

void SharedMemory::check_bounds(const Moment& now, int first, int bytes, int begin, int end,
                                const char* what) const {
  if (first >= begin && first + bytes <= end && end <= length_) return;
  throw Fault(str("thread ", now.thread, " ", what, " shared bytes ", first, " to ", first + bytes - 1,
                  " outside its array, bytes ", begin, " to ", end - 1, ", of ", length_));
}

// Whether nothing orders the two.
bool SharedMemory::together(const Moment& now, const Touch& before) {
  if (before.thread == kNobody || before.thread == now.thread || before.block_epoch != now.block_epoch)
    return false;
  return before.thread == kWarps || before.warp != now.thread / 32 || before.warp_epoch == now.warp_epoch;
}

void SharedMemory::check_apart(const Moment& now, const Touch& before, int byte, const char* what) const {
  if (!together(now, before)) return;
  throw Fault(str("thread ", now.thread, " ", what, " shared byte ", byte, " without a barrier behind ",
                  before.thread >= 0 ? str("thread ", before.thread) : std::string("several threads")));
}

void SharedMemory::note(Touch& touch, const Moment& now, bool sole) {
  const int warp = now.thread / 32;
  if (sole || touch.thread == kNobody || touch.block_epoch != now.block_epoch) {
    touch = {now.thread, warp, now.block_epoch, now.warp_epoch};
    return;
  }
  if (touch.thread != now.thread && touch.thread != kWarps)
    touch.thread = touch.warp == warp ? kLanes : kWarps;
  touch.warp_epoch = now.warp_epoch;
}

void SharedMemory::read(const Moment& now, int first, int bytes, int begin, int end) {
  check_bounds(now, first, bytes, begin, end, "reads");
  for (int at = first / kCell; at <= (first + bytes - 1) / kCell; ++at) {
    Cell& cell = cells_[size_t(at)];
    if (cell.promised != kNobody)
      throw Fault(str("thread ", now.thread, " reads shared byte ", at * kCell, " while a copy of thread ",
                      cell.promised, " to it was not waited for"));
    if (cell.write.thread == kNobody)
      throw Fault(str("thread ", now.thread, " reads shared byte ", at * kCell, ", which nothing wrote"));
    check_apart(now, cell.write, at * kCell, "reads");
    note(cell.read, now, false);
  }
}

void SharedMemory::write(const Moment& now, int first, int bytes, int begin, int end) {
  check_bounds(now, first, bytes, begin, end, "writes");
  for (int at = first / kCell; at <= (first + bytes - 1) / kCell; ++at) {
    Cell& cell = cells_[size_t(at)];
    if (cell.promised != kNobody)
      throw Fault(str("thread ", now.thread, " writes shared byte ", at * kCell, " while a copy of thread ",
                      cell.promised, " to it was not waited for"));
    check_apart(now, cell.write, at * kCell, "writes");
    check_apart(now, cell.read, at * kCell, "writes");
    note(cell.write, now, true);
  }
}

void SharedMemory::promise(const Moment& now, int first, int begin, int end) {
  if (first % 16 != 0)
    throw Fault(str("thread ", now.thread, " copies to shared byte ", first, ", not 16-byte aligned"));
  write(now, first, 16, begin, end);
  for (int at = first / kCell; at < (first + 16) / kCell; ++at) cells_[size_t(at)].promised = now.thread;
  std::memset(data() + first, 0xff, 16);
}

void SharedMemory::landed(const Moment& now, int first, const char* from) {
  for (int at = first / kCell; at < (first + 16) / kCell; ++at) {
    cells_[size_t(at)].promised = kNobody;
    note(cells_[size_t(at)].write, now, true);
  }
  std::memcpy(data() + first, from, 16);
}

}  // namespace ballast::simt
