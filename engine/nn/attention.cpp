#include "engine/nn/attention.h"

#include <cmath>

#include "engine/nn/tape.h"

namespace ballast::nn {

std::vector<ActivationSite> AttentionBranch::inner_sites() {
  if (probabilities.empty()) return {};
  return {{q.name + ".output", &query_grid},
          {k.name + ".output", &key_grid},
          {probabilities, &probability_grid},
          {v.name + ".output", &value_grid}};
}

void AttentionBranch::mix(const ForwardContext& context, const TensorView& x, const OutputView& u) {
  Workspace::Scope scope(context.workspace);
  const int64_t tokens = x.shape[0], width = q.out_features();
  // Where every token sees every other there is no past to keep.
  const bool cached = mask == Mask::causal;
  CHECK(!cached || size_t(layer) < context.cache.size());
  const OutputView queries = context.workspace.floats({tokens, width});
  const OutputView keys = context.workspace.floats({tokens, width});
  const OutputView values = context.workspace.floats({tokens, width});
  q.forward(context, x, queries);
  k.forward(context, x, keys);
  v.forward(context, x, values);
  const TensorView read_queries = rounded(context, query_grid, queries), read_keys = rounded(context, key_grid, keys),
                   read_values = rounded(context, value_grid, values);
  const float scale = 1.0f / std::sqrt(float(width / heads));
  context.backend.run(Attention{.q = read_queries,
                                .k = read_keys,
                                .v = read_values,
                                .cache = cached ? context.cache[size_t(layer)] : OutputView(),
                                .spans = context.batch.spans,
                                .heads = heads,
                                .scale = scale,
                                .mask = mask,
                                .probability_grid = probability_grid,
                                .out = u});
  if (!context.tape) return;
  context.tape->record([this, read_queries, read_keys, read_values, u, scale](const ForwardContext& back) {
    const auto gradient = [&](const TensorView& value) { return back.tape->gradient(back, value); };
    back.backend.run(AttentionBackward{.q = read_queries,
                                       .k = read_keys,
                                       .v = read_values,
                                       .d_out = gradient(u),
                                       .dq = gradient(read_queries),
                                       .dk = gradient(read_keys),
                                       .dv = gradient(read_values),
                                       .spans = back.batch.spans,
                                       .heads = heads,
                                       .scale = scale,
                                       .mask = mask});
  });
}

}  // namespace ballast::nn
