#include "quantize/methods/gptq.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quantize/affine_fit.h"
#include "quantize/methods/rtn.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

void expect_same(const AffineMatrix& a, const AffineMatrix& b) {
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scales, b.scales);
  EXPECT_EQ(a.zero_points, b.zero_points);
}

// A statistics object whose second moment is the identity.
Statistics identity(int64_t size) {
  Statistics statistics(size, 0, true);
  statistics.count = 1;
  for (int64_t i = 0; i < size; ++i) statistics.moment[size_t(i * size + i)] = 1;
  return statistics;
}

TEST(Gptq, EqualsRtnBitForBitOnIdentityHessian) {
  const LayerFixture layer(40, 192, 8, 1);
  const Statistics statistics = identity(layer.in);
  for (int bits : {2, 3, 4, 8})
    for (int64_t group : {0, 32, 64, 96}) {
      LayerInput input(*layer.backend, activation_curvature(statistics, false), {}, "layer");
      const LayerProblem problem = layer.problem(bits, group, &input);
      const LayerSolution gptq = solve_gptq(*layer.backend, problem),
                          rtn = solve_rtn(*layer.backend, problem);
      expect_same(affine(gptq), affine(rtn));
    }
}

TEST(Gptq, BeatsRtnOnCorrelatedInputs) {
  const LayerFixture layer(48, 160, 700, 2);
  for (int bits : {2, 3, 4})
    for (int64_t group : {0, 32, 80}) {
      LayerInput input(*layer.backend, activation_curvature(layer.statistics, false), {}, "layer");
      const LayerProblem problem = layer.problem(bits, group, &input);
      const double gptq = layer.error(affine(solve_gptq(*layer.backend, problem)));
      const double rtn = layer.error(affine(solve_rtn(*layer.backend, problem)));
      EXPECT_LT(gptq, 0.6 * rtn) << bits << " bits, groups of " << group;
    }
}

// The textbook form, one column at a time in f64 with an explicit inverse Hessian (paper, equation 2 and 3).
AffineMatrix naive_gptq(const LayerFixture& layer, int bits, double damping) {
  const int64_t n = layer.in;
  std::vector<double> h = activation_curvature(layer.statistics, false).h;
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += h[size_t(i * n + i)];
  for (int64_t i = 0; i < n; ++i) h[size_t(i * n + i)] += damping * trace / double(n);
  // Gauss-Jordan inverse.
  std::vector<double> inverse(size_t(n * n));
  for (int64_t i = 0; i < n; ++i) inverse[size_t(i * n + i)] = 1;
  for (int64_t p = 0; p < n; ++p) {
    const double pivot = h[size_t(p * n + p)];
    for (int64_t j = 0; j < n; ++j) h[size_t(p * n + j)] /= pivot, inverse[size_t(p * n + j)] /= pivot;
    for (int64_t i = 0; i < n; ++i) {
      if (i == p) continue;
      const double factor = h[size_t(i * n + p)];
      for (int64_t j = 0; j < n; ++j) {
        h[size_t(i * n + j)] -= factor * h[size_t(p * n + j)];
        inverse[size_t(i * n + j)] -= factor * inverse[size_t(p * n + j)];
      }
    }
  }
  std::vector<double> w(layer.weight.begin(), layer.weight.end());
  AffineMatrix out = empty_matrix(layer.problem(bits, 0));
  std::vector<Grid> grids;
  for (int64_t r = 0; r < layer.out; ++r) {
    grids.push_back(fit_grid({layer.weight.data() + r * n, size_t(n)}, {.bits = bits}));
    store_grid(out, r, 0, grids.back());
  }
  for (int64_t q = 0; q < n; ++q) {
    const double pivot = inverse[size_t(q * n + q)];
    for (int64_t r = 0; r < layer.out; ++r) {
      const int code = grids[size_t(r)].code(float(w[size_t(r * n + q)]));
      out.codes[size_t(r * n + q)] = uint8_t(code);
      const double error = (w[size_t(r * n + q)] - double(grids[size_t(r)].value(code))) / pivot;
      for (int64_t j = q; j < n; ++j) w[size_t(r * n + j)] -= error * inverse[size_t(q * n + j)];
    }
    for (int64_t i = q + 1; i < n; ++i)  // remove row and column q from the inverse
      for (int64_t j = q + 1; j < n; ++j)
        inverse[size_t(i * n + j)] -= inverse[size_t(i * n + q)] * inverse[size_t(q * n + j)] / pivot;
  }
  return out;
}

TEST(Gptq, AgreesWithTheTextbookForm) {
  const LayerFixture layer(24, 150, 600, 3);
  LayerInput input(*layer.backend, activation_curvature(layer.statistics, false), {.damping = 0.01}, "layer");
  const AffineMatrix fast = affine(solve_gptq(*layer.backend, layer.problem(3, 0, &input)));
  const AffineMatrix slow = naive_gptq(layer, 3, 0.01);
  EXPECT_EQ(fast.scales, slow.scales);
  int64_t different = 0;
  for (size_t i = 0; i < fast.codes.size(); ++i) different += fast.codes[i] != slow.codes[i];
  // A tie decided otherwise in f32 moves later columns of its row; most rows must not differ at all.
  EXPECT_LE(different, int64_t(fast.codes.size()) / 50);
  EXPECT_NEAR(layer.error(fast) / layer.error(slow), 1, 0.02);
}

TEST(Gptq, GroupsWiderThanABlockAndActOrderWork) {
  const LayerFixture layer(16, 384, 900, 4);
  for (const bool act_order : {false, true}) {
    LayerInput input(*layer.backend, activation_curvature(layer.statistics, false), {.act_order = act_order}, "layer");
    LayerProblem problem = layer.problem(3, 192, &input);
    problem.static_groups = act_order;
    const double gptq = layer.error(affine(solve_gptq(*layer.backend, problem)));
    EXPECT_LT(gptq, 0.6 * layer.error(affine(solve_rtn(*layer.backend, problem)))) << act_order;
  }
}

TEST(Gptq, DeadInputsAreHarmless) {
  LayerFixture layer(8, 64, 300, 5);
  Statistics statistics(64, 0, true);
  for (int64_t t = 0; t < layer.tokens; ++t) layer.x[size_t(t * 64 + 7)] = 0;
  statistics.add(*layer.backend, {layer.x.data(), DType::f32, {layer.tokens, 64}},
                 {layer.positions.data(), DType::i32, {layer.tokens}});
  LayerInput input(*layer.backend, activation_curvature(statistics, false), {}, "layer");
  EXPECT_EQ(input.factor().dead[7], 1);
  EXPECT_EQ(input.factor().damping, 0.01);
  const AffineMatrix matrix = affine(solve_gptq(*layer.backend, layer.problem(4, 0, &input)));
  EXPECT_EQ(matrix.value(3, 7), 0.0f);
  EXPECT_LT(layer.error(matrix), 0.01 * layer.power());
}

TEST(Gptq, DampingRisesUntilTheFactorizationHoldsAndIsReported) {
  Statistics statistics(4, 0, true);
  statistics.count = 1;
  // Indefinite on purpose: eigenvalues 1 ± 1.2 and 1, 1.
  statistics.moment = {1, 1.2, 0, 0, 1.2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  const auto backend = find_backend({.device = "cpu"});
  const InverseFactor factor = factorize(*backend, activation_curvature(statistics, false), {.damping = 0.01}, "layer");
  EXPECT_DOUBLE_EQ(factor.damping, 1);
}

TEST(Gptq, NonFiniteOrHopelessMomentsNameTheLayer) {
  const auto backend = find_backend({.device = "cpu"});
  Statistics statistics(2, 0, true);
  statistics.count = 1;
  for (const double bad : {double(NAN), 1e9}) {
    statistics.moment = {1, bad, bad, std::isnan(bad) ? bad : 1};
    try {
      factorize(*backend, activation_curvature(statistics, false), {}, "model.layers.3.fc1");
      FAIL() << bad;
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with("model.layers.3.fc1: ")) << error.what();
    }
  }
}

}  // namespace
}  // namespace ballast
