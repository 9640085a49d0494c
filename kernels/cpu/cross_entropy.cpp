#include "kernels/ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

// A row and its softmax: p[i] = exp(z[i] − max) · inverse.
struct SoftmaxRow {
  const float* z;
  const float* weights;
  float inverse;
  double log_sum;  ///< log Σ exp z

  double log_probability(int64_t i) const { return double(z[i]) - log_sum; }
  float probability(int64_t i) const { return weights[i] * inverse; }
};

SoftmaxRow softmax_row(const KernelTable& kernels, const float* z, int64_t count, float* weights) {
  std::memcpy(weights, z, size_t(count) * sizeof(float));
  const float inverse = kernels.softmax(weights, count);
  return {z, weights, inverse, double(*std::max_element(z, z + count)) - std::log(double(inverse))};
}

}  // namespace

void CpuBackend::run(const CrossEntropyBackward& op) {
  op.check();
  const int64_t vocab = op.logits.shape[1], padded = tile_count(vocab) * kTileRows;
  pool_.parallel(op.logits.shape[0], [&](int thread, int64_t first, int64_t last) {
    float* weights = thread_scratch(thread, 2 * padded);
    for (int64_t row = first; row < last; ++row) {
      float* z = op.logits.row(row);
      const int64_t target = op.targets ? op.targets.as<int32_t>()[row] : -1;
      op.loss[row] = 0;
      if (op.targets && target < 0) {
        std::fill_n(z, vocab, 0.0f);
        continue;
      }
      CHECK(target < vocab, "cross_entropy: target ", target, " of ", vocab);
      const SoftmaxRow p = softmax_row(kernels_, z, vocab, weights);
      if (op.targets) {
        op.loss[row] = -p.log_probability(target);
        for (int64_t i = 0; i < vocab; ++i)
          z[i] = op.scale * (p.probability(i) - (i == target ? 1.0f : 0.0f));
        continue;
      }
      const SoftmaxRow r = softmax_row(kernels_, op.teacher.row(row), vocab, weights + padded);
      for (int64_t i = 0; i < vocab; ++i) {
        op.loss[row] += double(r.probability(i)) * (r.log_probability(i) - p.log_probability(i));
        z[i] = op.scale * (p.probability(i) - r.probability(i));
      }
    }
  });
}

}  // namespace ballast
