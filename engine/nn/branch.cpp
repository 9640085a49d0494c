#include "engine/nn/branch.h"

#include "engine/nn/tape.h"

namespace ballast::nn {

TensorView Branch::expand_input(const ForwardContext& context, const TensorView& hidden) {
  TensorView x = hidden;
  if (norm_place == NormPlace::before) {
    const OutputView normed = context.workspace.floats(hidden.shape);
    norm.forward(context, hidden, normed);
    x = normed;
  } else if (context.tape) {  // the stream moves on in place
    x = context.tape->copy(context, hidden);
  }
  if (context.observer) context.observe(*expand().front(), x);  // expand() makes a list
  return x;
}

TensorView Branch::contract_input(const ForwardContext& context, const TensorView& x) {
  const OutputView u = context.workspace.floats({x.shape[0], contract().in_features()});
  mix(context, x, u);
  context.observe(contract(), u);
  return u;
}

void Branch::finish(const ForwardContext& context, const TensorView& u, const OutputView& hidden) {
  contract().forward(context, u, hidden, {.residual = hidden});
  if (norm_place == NormPlace::after) norm.forward(context, hidden, hidden);
}

void Branch::forward(const ForwardContext& context, const OutputView& hidden) {
  Workspace::Scope scope(context.workspace);
  finish(context, contract_input(context, expand_input(context, hidden)), hidden);
}

std::vector<ActivationSite> Block::sites() const {
  std::vector<ActivationSite> all;
  for (const auto& branch : branches) {
    for (Linear* layer : branch->expand()) all.push_back(layer->input_site());
    for (const ActivationSite& site : branch->inner_sites()) all.push_back(site);
    all.push_back(branch->contract().input_site());
  }
  return all;
}

int64_t Block::bytes() const {
  int64_t total = 0;
  for (const auto& branch : branches) {
    for (const Linear* layer : branch->expand()) total += layer->bytes();
    total += branch->contract().bytes() + branch->norm.weight.bytes() + branch->norm.bias.bytes();
  }
  return total;
}

}  // namespace ballast::nn
