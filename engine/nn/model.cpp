#include "engine/nn/model.h"

namespace ballast::nn {

Block& Model::block(int64_t index) {
  CHECK(index >= 0 && index < facts_.layers, "block ", index, " of ", facts_.layers);
  if (blocks_.empty()) blocks_.resize(size_t(facts_.layers));
  auto& slot = blocks_[size_t(index)];
  if (!slot) slot = load_block_(index);
  return *slot;
}

void Model::load_all() {
  for (int64_t index = 0; index < facts_.layers; ++index) block(index);
}

int64_t Model::bytes_per_token() {
  int64_t total = lm_head().bytes();
  for (const auto& slot : blocks_)
    if (slot) total += slot->bytes();
  for (const Linear* layer : outer_linears()) total += layer->bytes();
  return total;
}

}  // namespace ballast::nn
