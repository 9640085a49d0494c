// Rows of the backward pass, one instruction set (see simd.h). A call owns one row; sums keep one partial sum
// per lane and fold them once.
#pragma once

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/layernorm_kernels.h"

namespace ballast::BALLAST_ISA {

static void layernorm_backward(const LayerNormBackwardTask& task) {
  const auto [mean, inverse] = row_moments(task.x, task.epsilon, task.hidden);
  const int64_t whole = task.hidden / kLanes * kLanes;
  F sums = broadcast(0), dots = broadcast(0);
  for (int64_t i = 0; i < whole; i += kLanes) {
    F g = load(task.dy + i);
    if (task.weight) g = mul(g, load(task.weight + i));
    sums = add(sums, g);
    dots = fma(g, mul(sub(load(task.x + i), broadcast(mean)), broadcast(inverse)), dots);
  }
  float total = sum(sums), dot = sum(dots);
  for (int64_t i = whole; i < task.hidden; ++i) {
    const float g = task.weight ? task.dy[i] * task.weight[i] : task.dy[i];
    total += g;
    dot = __builtin_fmaf(g, (task.x[i] - mean) * inverse, dot);
  }
  const float mean_g = total / float(task.hidden), mean_dot = dot / float(task.hidden);
  for (int64_t i = 0; i < task.hidden; ++i) {
    const float g = task.weight ? task.dy[i] * task.weight[i] : task.dy[i];
    const float value = ((g - mean_g) - ((task.x[i] - mean) * inverse) * mean_dot) * inverse;
    task.dx[i] = task.accumulate ? task.dx[i] + value : value;
  }
}

// In place: scores of `count` positions -> probabilities p, and their gradient d -> scale · p · (d − Σ p·d).
// Both reach to a whole number of vectors; lanes beyond count become 0.
static void softmax_backward(float* scores, int64_t count, float scale, float* d) {
  const F inverse = broadcast(softmax(scores, count));
  const int64_t blocks = (count + kLanes - 1) / kLanes;
  const int tail = int(count - (blocks - 1) * kLanes);
  F dots = broadcast(0);
  for (int64_t b = 0; b < blocks; ++b) {
    const F p = mul(load(scores + b * kLanes), inverse);
    F value = load(d + b * kLanes);
    if (b == blocks - 1) value = first(tail, value, broadcast(0));
    store(scores + b * kLanes, p);
    store(d + b * kLanes, value);
    dots = fma(p, value, dots);
  }
  const F dot = broadcast(sum(dots));
  for (int64_t b = 0; b < blocks; ++b) {
    const F p = load(scores + b * kLanes);
    store(d + b * kLanes, mul(mul(p, broadcast(scale)), sub(load(d + b * kLanes), dot)));
  }
}

}  // namespace ballast::BALLAST_ISA
