// Layer normalization, one instruction set (see simd.h). Work partition: a call owns one row; sums keep one partial
// sum per lane and fold them once.
#pragma once

#include <math.h>

#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

struct RowMoments {
  float mean, inverse;  ///< inverse: 1 / sqrt(variance + epsilon)
};
static inline RowMoments row_moments(const float* x, float epsilon, int64_t hidden) {
  const int64_t whole = hidden / kLanes * kLanes;
  F sums = broadcast(0);
  for (int64_t i = 0; i < whole; i += kLanes) sums = add(sums, load(x + i));
  float total = sum(sums);
  for (int64_t i = whole; i < hidden; ++i) total += x[i];
  const float mean = total / float(hidden);

  F squares = broadcast(0);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const F centred = sub(load(x + i), broadcast(mean));
    squares = fma(centred, centred, squares);
  }
  float variance = sum(squares);
  for (int64_t i = whole; i < hidden; ++i) variance = __builtin_fmaf(x[i] - mean, x[i] - mean, variance);
  return {mean, 1.0f / sqrtf(variance / float(hidden) + epsilon)};
}

static void layernorm(const float* x, const float* weight, const float* bias, float epsilon, int64_t hidden,
                      float* y) {
  const auto [mean, inverse] = row_moments(x, epsilon, hidden);
  for (int64_t i = 0; i < hidden; ++i) {
    float value = (x[i] - mean) * inverse;
    if (weight) value = value * weight[i];
    y[i] = bias ? value + bias[i] : value;
  }
}

}  // namespace ballast::BALLAST_ISA
