// Table look-up; the table is a Weight, so that a tied head reads the same bytes.
#pragma once

#include "engine/core/weight.h"
#include "engine/nn/context.h"

namespace ballast::nn {

/// y[t] = table[ids[t]], or += when accumulating. y: f32 [tokens, hidden].
inline void embed(const ForwardContext& context, const Weight& table, const TensorView& ids,
                  const OutputView& y, bool accumulate = false) {
  table.visit([&]<class View>(const View& view) {
    context.backend.run(ballast::Embedding<View>{.ids = ids, .table = view, .accumulate = accumulate, .y = y});
  });
}

}  // namespace ballast::nn
