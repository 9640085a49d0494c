// Curvature: the quadratic form that a method minimizes. A row d of W − Q costs d·H·dᵀ. Which estimate H is
// (second moment of the inputs, their covariance, gradients of the loss) is no concern of the methods.
#pragma once

#include <cstdint>
#include <vector>

#include "quantize/statistics.h"

namespace ballast {

struct Curvature {
  int64_t size = 0;
  std::vector<double> h;      ///< f64 [size, size], symmetric
  std::vector<uint8_t> dead;  ///< [size]: 1 where the input is always zero, so that its weights are free
};

/// E[xxᵀ] (GPTQ, arXiv 2210.17323, up to a factor), or the covariance E[xxᵀ] − E[x]E[x]ᵀ when centred.
Curvature activation_curvature(const Statistics& statistics, bool centred);

}  // namespace ballast
