// A transformer block is two residual branches of one form:
//
//   x = norm(h)                 pre-norm; x = h where the norm comes after
//   u = mix(expand(x))          attention over q, k, v, or the activation of fc1
//   h = h + contract(u)         out_proj or fc2; then norm(h) where the norm comes after
//
// The three steps can be run one by one: calibration stops after the input it wants to see, and moves the
// hidden stream forward by half a block at a time.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "engine/nn/layernorm.h"
#include "engine/nn/linear.h"

namespace ballast::nn {

enum class NormPlace : uint8_t { before, after };

class Branch {
 public:
  Branch() = default;
  Branch(const Branch&) = delete;
  Branch& operator=(const Branch&) = delete;
  virtual ~Branch() = default;

  /// Layers that read x; all share one input.
  virtual std::vector<Linear*> expand() = 0;
  /// The layer that reads u.
  virtual Linear& contract() = 0;
  /// Places between them whose values can be rounded.
  virtual std::vector<ActivationSite> inner_sites() { return {}; }

  /// x: f32 [tokens, hidden], either `hidden` itself or workspace memory of the caller's scope. Observed as
  /// the input of expand().
  TensorView expand_input(const ForwardContext& context, const TensorView& hidden);
  /// u: f32 [tokens, contract().in_features()]. Observed as the input of contract().
  TensorView contract_input(const ForwardContext& context, const TensorView& x);
  /// hidden += contract(u), in place; then the norm where it comes after.
  void finish(const ForwardContext& context, const TensorView& u, const OutputView& hidden);
  /// All three steps.
  void forward(const ForwardContext& context, const OutputView& hidden);

  LayerNorm norm;
  NormPlace norm_place = NormPlace::before;

 protected:
  virtual void mix(const ForwardContext& context, const TensorView& x, const OutputView& u) = 0;
};

/// One layer: the attention branch, then the MLP branch.
struct Block {
  std::vector<std::unique_ptr<Branch>> branches;

  void forward(const ForwardContext& context, const OutputView& hidden) {
    for (const auto& branch : branches) branch->forward(context, hidden);
  }
  int64_t bytes() const;
  /// Of all its layers and branches, in the order they run.
  std::vector<ActivationSite> sites() const;
};

}  // namespace ballast::nn
