#include "quantize/methods/comq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/affine_fit.h"
#include "quantize/methods/gptq.h"
#include "quantize/methods/rtn.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

struct Comq {
  LayerFixture layer;
  Curvature curvature;
  LayerInput input;
  explicit Comq(int64_t rows, int64_t columns, uint64_t seed, double damping = 0.01)
      : layer(rows, columns, 6 * columns, seed),
        curvature(activation_curvature(layer.statistics, false)),
        input(*layer.backend, curvature, {.damping = damping}, "layer") {}
  LayerProblem problem(int bits, int64_t group, MethodOptions options = {}) {
    LayerProblem out = layer.problem(bits, group, &input);
    out.options = options;
    return out;
  }
  AffineMatrix solve(const LayerProblem& problem) { return affine(solve_comq(*layer.backend, problem)); }
};

// The paper's algorithm for one scale per row, in f64 and with the inputs themselves instead of their second
// moment: greedy order, u = X(w − q) kept up to date, then the closed form of the scale.
void paper_row(const LayerFixture& layer, int64_t row, int sweeps, float scale, int zero, int max_code,
               std::vector<double>& q, double& final_scale) {
  const int64_t n = layer.in, tokens = layer.tokens;
  const auto w = [&](int64_t j) { return double(layer.weight[size_t(row * n + j)]); };
  const auto x = [&](int64_t t, int64_t j) { return double(layer.x[size_t(t * n + j)]); };
  std::vector<double> power(static_cast<size_t>(n)), u(static_cast<size_t>(tokens));
  for (int64_t j = 0; j < n; ++j) {
    q[size_t(j)] = w(j);
    for (int64_t t = 0; t < tokens; ++t) power[size_t(j)] += x(t, j) * x(t, j);
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::sqrt(power[size_t(a)]) * std::fabs(w(a)) > std::sqrt(power[size_t(b)]) * std::fabs(w(b));
  });
  double step = double(scale);
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int64_t j : order) {
      double inner = 0;
      for (int64_t t = 0; t < tokens; ++t) inner += x(t, j) * u[size_t(t)];
      const double best = q[size_t(j)] + inner / power[size_t(j)];
      const double code = std::clamp(std::nearbyint(best / step) + zero, 0.0, double(max_code));
      const double value = step * (code - zero);
      for (int64_t t = 0; t < tokens; ++t) u[size_t(t)] -= x(t, j) * (value - q[size_t(j)]);
      q[size_t(j)] = value;
    }
    double with_weight = 0, with_itself = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      double xw = 0, xq = 0;
      for (int64_t j = 0; j < n; ++j) xw += x(t, j) * w(j), xq += x(t, j) * q[size_t(j)] / step;
      with_weight += xq * xw, with_itself += xq * xq;
    }
    const double next = with_weight / with_itself;
    for (int64_t t = 0; t < tokens; ++t) {
      double change = 0;
      for (int64_t j = 0; j < n; ++j) change += x(t, j) * q[size_t(j)] * (next / step - 1);
      u[size_t(t)] -= change;
    }
    for (double& value : q) value *= next / step;
    step = next;
  }
  final_scale = step;
}

TEST(Comq, AgreesWithThePapersAlgorithm) {
  Comq comq(12, 48, 1, 1e-9);
  const LayerFixture& layer = comq.layer;
  LayerProblem problem =
      comq.problem(3, 0, {.sweeps = 3, .greedy_order = true, .anneal = false, .unbiased_scales = false});
  problem.grid.symmetric = true;  // zero points stay, as in the paper
  const AffineMatrix fast = comq.solve(problem);
  double objective = 0, paper = 0;
  int64_t same_rows = 0;
  for (int64_t row = 0; row < layer.out; ++row) {
    const Grid grid = fit_grid({layer.weight.data() + row * layer.in, size_t(layer.in)}, problem.grid);
    std::vector<double> q(static_cast<size_t>(layer.in));
    double scale = 0;
    paper_row(layer, row, 3, grid.scale, grid.zero_point, grid.max_code, q, scale);
    bool same = true;
    for (int64_t j = 0; j < layer.in; ++j)
      same &= std::nearbyint(q[size_t(j)] / scale) == std::nearbyint(fast.value(row, j) / fast.scale(row, 0));
    same_rows += same;
    if (same) {
      EXPECT_NEAR(fast.scale(row, 0), scale, 0x1p-11 * 1.01 * scale) << row;
    }
    for (int64_t i = 0; i < layer.in; ++i)
      for (int64_t j = 0; j < layer.in; ++j) {
        const double h = comq.curvature.h[size_t(i * layer.in + j)];
        const auto d = [&](int64_t k, double value) {
          return double(layer.weight[size_t(row * layer.in + k)]) - value;
        };
        objective += d(i, fast.value(row, i)) * h * d(j, fast.value(row, j));
        paper += d(i, q[size_t(i)]) * h * d(j, q[size_t(j)]);
      }
  }
  // Scales here are binary16 after each sweep, so that a code near a midpoint may differ.
  EXPECT_GE(same_rows, layer.out / 2);
  EXPECT_NEAR(objective / paper, 1, 0.1);
}

TEST(Comq, BeatsRtnAndGptqOnCorrelatedInputs) {
  Comq comq(48, 160, 2);
  for (const int bits : {2, 3, 4})
    for (const int64_t group : {0, 32, 80}) {
      const double error = comq.layer.error(comq.solve(comq.problem(bits, group)));
      const LayerProblem problem = comq.layer.problem(bits, group, &comq.input);
      EXPECT_LT(error, 0.2 * comq.layer.error(affine(solve_rtn(*comq.layer.backend, problem))));
      EXPECT_LT(error, comq.layer.error(affine(solve_gptq(*comq.layer.backend, problem))))
          << bits << " bits, groups of " << group;
    }
}

TEST(Comq, AnnealingIsWorthIt) {
  Comq comq(32, 192, 3);
  const double plain = comq.layer.error(comq.solve(comq.problem(3, 64, {.sweeps = 8, .anneal = false})));
  EXPECT_LT(comq.layer.error(comq.solve(comq.problem(3, 64, {.sweeps = 8}))), 0.8 * plain);
}

TEST(Comq, GptqIsNeverWorseForItsSweeps) {
  Comq comq(24, 160, 4);
  const double plain = comq.layer.error(affine(solve_gptq(*comq.layer.backend, comq.problem(3, 32))));
  for (const int sweeps : {1, 3, 8}) {
    const LayerProblem problem = comq.problem(3, 32, {.sweeps = sweeps});
    EXPECT_LT(comq.layer.error(affine(solve_gptq(*comq.layer.backend, problem))), 0.9 * plain);
  }
}

TEST(Comq, IdentityCurvatureIsRoundingWithTheBestScale) {
  const LayerFixture layer(16, 96, 8, 5);
  Curvature identity{96, std::vector<double>(96 * 96), std::vector<uint8_t>(96)};
  for (size_t i = 0; i < 96; ++i) identity.h[i * 97] = 1;
  LayerInput input(*layer.backend, identity, {}, "layer");
  LayerProblem problem = layer.problem(3, 32, &input);
  problem.options = {.sweeps = 1, .refit_scales = false, .unbiased_scales = false};
  const AffineMatrix rtn = affine(solve_rtn(*layer.backend, problem));
  AffineMatrix comq = affine(solve_comq(*layer.backend, problem));
  // A zero point may have moved where that rounds better; elsewhere nothing differs.
  for (size_t g = 0; g < rtn.zero_points.size(); ++g) {
    if (comq.zero_points[g] != rtn.zero_points[g]) continue;
    EXPECT_EQ(comq.scales[g], rtn.scales[g]);
    EXPECT_TRUE(std::equal(rtn.codes.begin() + int64_t(g) * 32, rtn.codes.begin() + int64_t(g + 1) * 32,
                           comq.codes.begin() + int64_t(g) * 32));
  }
  problem.options = {.unbiased_scales = false};
  comq = affine(solve_comq(*layer.backend, problem));
  const auto squares = [&](const AffineMatrix& matrix) {
    double sum = 0;
    for (int64_t r = 0; r < 16; ++r)
      for (int64_t j = 0; j < 96; ++j)
        sum += std::pow(double(layer.weight[size_t(r * 96 + j)]) - double(matrix.value(r, j)), 2);
    return sum;
  };
  EXPECT_LT(squares(comq), 0.95 * squares(rtn));
}

TEST(Comq, OneScaleForTheLayer) {
  Comq comq(24, 128, 6);
  const AffineMatrix matrix = comq.solve(comq.problem(4, 0, {.per_layer = true}));
  for (uint16_t scale : matrix.scales) EXPECT_EQ(scale, matrix.scales.front());
  const double channel = comq.layer.error(comq.solve(comq.problem(4, 0)));
  const double layer = comq.layer.error(matrix);
  EXPECT_LT(channel, layer);
  EXPECT_LT(layer, 3 * channel);
}

TEST(Comq, DeadInputsGetZero) {
  Comq comq(8, 64, 7);
  for (int64_t i = 0; i < 64; ++i)
    comq.curvature.h[size_t(9 * 64 + i)] = comq.curvature.h[size_t(i * 64 + 9)] = 0;
  comq.curvature.dead[9] = 1;
  LayerInput input(*comq.layer.backend, comq.curvature, {}, "layer");
  LayerProblem problem = comq.layer.problem(3, 32, &input);
  const AffineMatrix matrix = comq.solve(problem);
  matrix.check("matrix");
  for (int64_t r = 0; r < 8; ++r) EXPECT_EQ(matrix.value(r, 9), 0.0f);
}

}  // namespace
}  // namespace ballast
