// The feed-forward part of a block as a residual branch: fc2(activation(fc1(x))).
#pragma once

#include "engine/nn/branch.h"

namespace ballast::nn {

class MlpBranch final : public Branch {
 public:
  Linear fc1, fc2;
  Activation activation = Activation::relu;

  std::vector<Linear*> expand() override { return {&fc1}; }
  Linear& contract() override { return fc2; }

 protected:
  void mix(const ForwardContext& context, const TensorView& x, const OutputView& u) override {
    fc1.forward(context, x, u, {.activation = activation});
  }
};

}  // namespace ballast::nn
