// y[i] = x[rows[i]] as a step of a model: the rows that a head reads.
#pragma once

#include <vector>

#include "engine/nn/context.h"

namespace ballast::nn {

/// x: f32 [tokens, width]; y: f32 [rows.size(), width]; each row within x and named once.
void pick_rows(const ForwardContext& context, const TensorView& x, const std::vector<int32_t>& rows,
               const OutputView& y);

}  // namespace ballast::nn
