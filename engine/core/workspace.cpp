#include "engine/core/workspace.h"

#include <algorithm>

namespace ballast {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kSmallestBlock = int64_t(1) << 20;

}  // namespace

OutputView Workspace::tensor(DType dtype, Shape shape) {
  const int64_t bytes = (shape.elements() * size_of(dtype) + kAlignment - 1) / kAlignment * kAlignment;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    const int64_t doubled = blocks_.empty() ? kSmallestBlock : 2 * blocks_.back().bytes();
    blocks_.emplace_back(backend_, DType::u8, Shape{std::max(bytes, std::min(doubled, int64_t(64) << 20))});
    used_ = 0;
  }
  OutputView view(blocks_[block_].view().as<char>() + used_, dtype, shape, backend_.device());
  used_ += bytes;
  return view;
}

int64_t Workspace::bytes() const {
  int64_t total = 0;
  for (const Tensor& block : blocks_) total += block.bytes();
  return total;
}

}  // namespace ballast
