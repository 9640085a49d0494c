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

  std::vector<Linear*> expand() override { return {&q, &k, &v}; }
  Linear& contract() override { return out; }

 protected:
  void mix(const ForwardContext& context, const TensorView& x, const OutputView& u) override;
};

}  // namespace ballast::nn
