#include "engine/nn/attention.h"

#include <cmath>

namespace ballast::nn {

void AttentionBranch::mix(const ForwardContext& context, const TensorView& x, const OutputView& u) {
  Workspace::Scope scope(context.workspace);
  const int64_t tokens = x.shape[0], width = q.out_features();
  CHECK(size_t(layer) < context.cache.size());
  const OutputView queries = context.workspace.floats({tokens, width});
  const OutputView keys = context.workspace.floats({tokens, width});
  const OutputView values = context.workspace.floats({tokens, width});
  q.forward(context, x, queries);
  k.forward(context, x, keys);
  v.forward(context, x, values);
  context.backend.run(Attention{.q = queries,
                                .k = keys,
                                .v = values,
                                .cache = context.cache[size_t(layer)],
                                .spans = context.batch.spans,
                                .heads = heads,
                                .scale = 1.0f / std::sqrt(float(width / heads)),
                                .mask = mask,
                                .out = u});
}

}  // namespace ballast::nn
