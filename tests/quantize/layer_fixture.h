// One random linear layer with correlated inputs, and the statistics of those inputs.
#pragma once

#include <random>
#include <vector>

#include "kernels/backend.h"
#include "quantize/methods.h"
#include "quantize/statistics.h"

namespace ballast {

inline AffineMatrix affine(const LayerSolution& solution) {
  return std::get<AffineMatrix>(solution.matrix);
}

struct LayerFixture {
  int64_t out, in, tokens;
  std::unique_ptr<Backend> backend = find_backend({.device = "cpu"});
  std::vector<float> weight, x;
  std::vector<int32_t> positions;
  Statistics statistics;

  /// Inputs: a few shared directions, a constant offset and some noise. `positions` repeat with period
  /// `period`.
  LayerFixture(int64_t rows, int64_t columns, int64_t count, uint64_t seed, int64_t period = 0,
               float offset = 0.5f)
      : out(rows),
        in(columns),
        tokens(count),
        weight(size_t(rows * columns)),
        x(size_t(count * columns)),
        positions(size_t(count)),
        statistics(columns, period, true) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (float& value : weight) value = normal(random);
    const int64_t shared = 6;
    std::vector<float> mix(size_t(shared * in)), shift(static_cast<size_t>(in));
    for (float& value : mix) value = normal(random);
    for (float& value : shift) value = offset * normal(random);
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<float> factors(static_cast<size_t>(shared));
      for (float& value : factors) value = normal(random);
      for (int64_t i = 0; i < in; ++i) {
        float value = shift[size_t(i)] + 0.3f * normal(random);
        for (int64_t k = 0; k < shared; ++k) value += factors[size_t(k)] * mix[size_t(k * in + i)];
        x[size_t(t * in + i)] = value;
      }
      positions[size_t(t)] = period ? int32_t(t % period) : 0;
    }
    statistics.add(*backend, {x.data(), DType::f32, {tokens, in}}, {positions.data(), DType::i32, {tokens}});
  }

  LayerProblem problem(int bits, int64_t group, LayerInput* input = nullptr) const {
    return {.name = "layer",
            .out_features = out,
            .in_features = in,
            .weight = weight,
            .grid = {.bits = bits, .group_size = group ? group : in},
            .input = input};
  }

  /// Σ over tokens and outputs of ((W − Q)x − c)², by definition, in f64.
  double error(const AffineMatrix& quantized, const std::vector<float>& channel = {}) const {
    double sum = 0;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < out; ++r) {
        double y = channel.empty() ? 0 : -double(channel[size_t(r)]);
        for (int64_t i = 0; i < in; ++i)
          y += (double(weight[size_t(r * in + i)]) - double(quantized.value(r, i))) *
               double(x[size_t(t * in + i)]);
        sum += y * y;
      }
    return sum;
  }
  double power() const {
    double sum = 0;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < out; ++r) {
        double y = 0;
        for (int64_t i = 0; i < in; ++i)
          y += double(weight[size_t(r * in + i)]) * double(x[size_t(t * in + i)]);
        sum += y * y;
      }
    return sum;
  }
};

}  // namespace ballast
