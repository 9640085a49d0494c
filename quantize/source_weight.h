// The float weight of a layer as its checkpoint holds it.
#pragma once

#include <vector>

#include "engine/io/checkpoint.h"
#include "engine/nn/linear.h"

namespace ballast {

/// f32 [out_features, in_features]; a weight that is quantized already is decoded. Error naming the first element that
/// is not finite.
std::vector<float> source_weight(const Checkpoint& source, const nn::Linear& layer);

}  // namespace ballast
