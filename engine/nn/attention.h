// Multi-head self-attention as a residual branch.
#pragma once

#include "engine/nn/branch.h"

namespace ballast::nn {

class AttentionBranch final : public Branch {
 public:
  Linear q, k, v, out;
  int64_t heads = 0;
  int layer = 0;  ///< index into the context's cache views
  Mask mask = Mask::causal;
  std::optional<ActivationGrid> query_grid, key_grid, value_grid;  ///< of the operands, as q, k and v give them
  std::optional<ActivationGrid> probability_grid;  ///< of softmax; of whole sequences without a cache only
  std::string probabilities;  ///< site of the last one; empty: it has none

  std::vector<Linear*> expand() override { return {&q, &k, &v}; }
  Linear& contract() override { return out; }
  std::vector<ActivationSite> inner_sites() override;

 protected:
  void mix(const ForwardContext& context, const TensorView& x, const OutputView& u) override;
};

}  // namespace ballast::nn
