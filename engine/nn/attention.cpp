#include "engine/nn/attention.h"

#include <cmath>

#include "engine/nn/tape.h"

namespace ballast::nn {

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
  const float scale = 1.0f / std::sqrt(float(width / heads));
  context.backend.run(Attention{.q = queries,
                                .k = keys,
                                .v = values,
                                .cache = cached ? context.cache[size_t(layer)] : OutputView(),
                                .spans = context.batch.spans,
                                .heads = heads,
                                .scale = scale,
                                .mask = mask,
                                .out = u});
  if (!context.tape) return;
  context.tape->record([this, queries, keys, values, u, scale](const ForwardContext& back) {
    const auto gradient = [&](const TensorView& value) { return back.tape->gradient(back, value); };
    back.backend.run(AttentionBackward{.q = queries,
                                       .k = keys,
                                       .v = values,
                                       .d_out = gradient(u),
                                       .dq = gradient(queries),
                                       .dk = gradient(keys),
                                       .dv = gradient(values),
                                       .spans = back.batch.spans,
                                       .heads = heads,
                                       .scale = scale,
                                       .mask = mask});
  });
}

}  // namespace ballast::nn
