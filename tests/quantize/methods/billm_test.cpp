#include "quantize/methods/billm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/methods/binary_fit.h"
#include "quantize/methods/gptq.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

struct Billm {
  LayerFixture layer;
  LayerInput input;
  Billm(int64_t rows, int64_t columns, uint64_t seed)
      : layer(rows, columns, 6 * columns, seed),
        input(*layer.backend, activation_curvature(layer.statistics, false), {}, "layer") {}
  LayerProblem problem(int64_t block = 128) {
    LayerProblem out = layer.problem(1, 0, &input);
    out.options.block_size = block;
    return out;
  }
  ResidualBinaryMatrix solve(const LayerProblem& problem) {
    auto matrix = std::get<ResidualBinaryMatrix>(solve_billm(*layer.backend, problem).matrix);
    matrix.check("matrix");
    return matrix;
  }
};

// Σ over tokens of ‖(W − Q)x‖² by definition.
template <class Matrix>
double output_error(const LayerFixture& layer, const Matrix& matrix) {
  double sum = 0;
  std::vector<float> row(static_cast<size_t>(layer.in));
  for (int64_t r = 0; r < layer.out; ++r) {
    matrix.decode_row(r, row.data());
    for (int64_t t = 0; t < layer.tokens; ++t) {
      double y = 0;
      for (int64_t j = 0; j < layer.in; ++j)
        y += (double(layer.weight[size_t(r * layer.in + j)]) - double(row[size_t(j)])) *
             double(layer.x[size_t(t * layer.in + j)]);
      sum += y * y;
    }
  }
  return sum;
}

std::vector<float> normals(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.1f);
  std::vector<float> out(count);
  for (float& value : out) value = normal(random);
  return out;
}

TEST(BinaryFit, OneStageIsMeanAndMeanMagnitude) {
  const std::vector<float> w = {-1, 1, 2, 6};
  const StageFit fit = fit_stage(w);
  EXPECT_DOUBLE_EQ(fit.mean, 2);
  EXPECT_DOUBLE_EQ(fit.scale, 2);
  // |w − 2| is 3, 1, 0, 4 and each is off by its distance from 2.
  EXPECT_DOUBLE_EQ(stage_error(w), 1 + 1 + 4 + 4);
  EXPECT_EQ(fit_stage({}).scale, 0);
}

// No scale near the fitted one does better for the signs of w − mean.
TEST(BinaryFit, OneStageScaleIsTheBest) {
  const std::vector<float> w = normals(50, 1);
  const StageFit fit = fit_stage(w);
  const auto error = [&](double scale) {
    double sum = 0;
    for (float v : w) sum += std::pow(std::fabs(double(v) - fit.mean) - scale, 2);
    return sum;
  };
  EXPECT_NEAR(stage_error(w), error(fit.scale), 1e-12 * error(fit.scale));
  for (const double factor : {0.99, 1.01}) EXPECT_GT(error(factor * fit.scale), error(fit.scale));
}

double error_with(std::span<const float> weights, const std::array<float, 4>& levels) {
  double sum = 0;
  for (float w : weights) sum += std::pow(double(w) - double(levels[size_t(nearest(levels, w))]), 2);
  return sum;
}
std::array<float, 4> levels_of(const ResidualFit& fit) {
  std::array<float, 4> levels{};
  for (size_t code = 0; code < 4; ++code)
    levels[code] = float(fit.mean + (code & 1 ? 1 : -1) * fit.scale1 + (code & 2 ? 1 : -1) * fit.scale2);
  return levels;
}
std::array<float, 4> levels_of(const SplitFit& fit) {
  return {float(fit.inner.mean - fit.inner.scale), float(fit.inner.mean + fit.inner.scale),
          float(fit.outer.mean - fit.outer.scale), float(fit.outer.mean + fit.outer.scale)};
}

TEST(BinaryFit, MoreStagesAreBetter) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> w = normals(64, seed);
    EXPECT_LT(residual_error(w), 0.6 * stage_error(w));
    EXPECT_LE(error_with(w, levels_of(fit_residual(w))), residual_error(w) * (1 + 1e-5));
    // The best split by trying all of them, one stage each.
    std::vector<float> sorted = w;
    std::sort(sorted.begin(), sorted.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
    double best = INFINITY;
    for (size_t at = 7; at <= 57; ++at)
      best = std::min(best, stage_error(std::span<const float>(sorted).first(at)) +
                                stage_error(std::span<const float>(sorted).subspan(at)));
    EXPECT_LE(error_with(w, levels_of(fit_split(w))), best * (1 + 1e-5));
  }
}

TEST(BinaryFit, SmallSetsAreExact) {
  for (const std::vector<float>& w : {std::vector<float>{}, {0.5f}, {0.5f, -0.25f}, {1.0f, 1.0f, 1.0f}}) {
    EXPECT_NEAR(error_with(w, levels_of(fit_split(w))), 0, 1e-12);
    EXPECT_NEAR(error_with(w, levels_of(fit_residual(w))), 0, 1e-12);
  }
}

// The solver's parts in f64, one column at a time: salient columns by trying every number, feedback with U.
TEST(Billm, AgreesWithANaiveForm) {
  Billm billm(24, 96, 1);
  LayerProblem problem = billm.problem(32);
  problem.options.unbiased_scales = false;
  const ResidualBinaryMatrix fast = billm.solve(problem);
  const InverseFactor& factor = billm.input.factor();
  const int64_t n = 96, rows = 24;
  std::vector<double> w(problem.weight.begin(), problem.weight.end());
  std::vector<std::vector<double>> q(24, std::vector<double>(96));
  for (int64_t first = 0; first < n; first += 32) {
    const auto part = [&](int64_t row, const std::vector<int64_t>& columns) {
      std::vector<float> out;
      for (int64_t j : columns) out.push_back(float(w[size_t(row * n + j)]));
      return out;
    };
    std::vector<int64_t> ranked(32);
    std::iota(ranked.begin(), ranked.end(), first);
    std::vector<double> saliency(static_cast<size_t>(n));
    for (int64_t j : ranked)
      for (int64_t r = 0; r < rows; ++r)
        saliency[size_t(j)] += std::pow(w[size_t(r * n + j)] / factor.diagonal(j), 2);
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](int64_t a, int64_t b) { return saliency[size_t(a)] > saliency[size_t(b)]; });
    double best = INFINITY;
    std::vector<int64_t> salient, rest;
    for (int64_t count = 1; count < 32; ++count) {
      const std::vector<int64_t> top(ranked.begin(), ranked.begin() + count),
          others(ranked.begin() + count, ranked.end());
      double error = 0;
      for (int64_t r = 0; r < rows; ++r) error += residual_error(part(r, top)) + stage_error(part(r, others));
      if (error < best) best = error, salient = top, rest = others;
    }
    std::sort(rest.begin(), rest.end());
    for (int64_t j = first; j < first + 32; ++j)
      EXPECT_EQ(fast.salient[size_t(j)], std::find(salient.begin(), salient.end(), j) != salient.end()) << j;
    for (int64_t r = 0; r < rows; ++r) {
      const std::array<float, 4> residual = levels_of(fit_residual(part(r, salient)));
      const std::array<float, 4> split = levels_of(fit_split(part(r, rest)));
      double* row = w.data() + r * n;
      for (int64_t j = first; j < first + 32; ++j) {
        const auto& levels = fast.salient[size_t(j)] ? residual : split;
        q[size_t(r)][size_t(j)] = double(levels[size_t(nearest(levels, float(row[j])))]);
        std::vector<float> u(static_cast<size_t>(n - j));
        factor.rows(j, 1, u.data());
        const double error = (row[j] - q[size_t(r)][size_t(j)]) / factor.diagonal(j);
        for (int64_t k = j + 1; k < n; ++k) row[k] -= error * double(u[size_t(k - j)]);
      }
    }
  }
  std::vector<float> row(static_cast<size_t>(n));
  int64_t different = 0;
  for (int64_t r = 0; r < rows; ++r) {
    fast.decode_row(r, row.data());
    for (int64_t j = 0; j < n; ++j)  // coefficients here are not rounded to binary16
      different += std::fabs(double(row[size_t(j)]) - q[size_t(r)][size_t(j)]) > 0.02;
  }
  EXPECT_LE(different, rows * n / 10);
}

TEST(Billm, FeedbackBeatsRoundingAndTwoBitGptq) {
  Billm billm(48, 256, 2);
  const ResidualBinaryMatrix matrix = billm.solve(billm.problem());
  Curvature identity{256, std::vector<double>(256 * 256), std::vector<uint8_t>(256)};
  for (size_t i = 0; i < 256; ++i) identity.h[i * 257] = 1;
  LayerInput plain(*billm.layer.backend, identity, {}, "layer");
  LayerProblem problem = billm.problem();
  problem.input = &plain;
  const double fed_back = output_error(billm.layer, matrix);
  EXPECT_LT(fed_back, 0.3 * output_error(billm.layer, billm.solve(problem)));
  // Four free values per row and 128 columns against four even ones: two bits each.
  const AffineMatrix gptq =
      affine(solve_gptq(*billm.layer.backend, billm.layer.problem(2, 128, &billm.input)));
  EXPECT_LT(fed_back, output_error(billm.layer, gptq));
}

TEST(Billm, LargeColumnsBecomeSalient) {
  Billm billm(32, 128, 3);
  for (int64_t r = 0; r < 32; ++r)
    for (int64_t j : {7, 40, 99}) billm.layer.weight[size_t(r * 128 + j)] *= 20;
  const ResidualBinaryMatrix matrix = billm.solve(billm.problem());
  for (int64_t j : {7, 40, 99}) EXPECT_EQ(matrix.salient[size_t(j)], 1) << j;
  EXPECT_LE(std::accumulate(matrix.salient.begin(), matrix.salient.end(), 0), 49);
}

TEST(Billm, BitsAreWhatTheFileHolds) {
  Billm billm(40, 160, 4);
  const ResidualBinaryMatrix matrix = billm.solve(billm.problem());
  EXPECT_EQ(matrix.blocks(), 2);          // 128 and 32
  const double bits = 2 * 40 * 160        // sign and group, or both signs
                      + 160               // which columns are salient
                      + 16 * 40 * 2 * 7;  // coefficients of a row and block
  EXPECT_DOUBLE_EQ(matrix.bits_per_weight(), bits / (40 * 160));
}

TEST(Billm, DeadInputsHaveNoSay) {
  Billm billm(16, 64, 5);
  Curvature curvature = activation_curvature(billm.layer.statistics, false);
  for (int64_t i = 0; i < 64; ++i) curvature.h[size_t(5 * 64 + i)] = curvature.h[size_t(i * 64 + 5)] = 0;
  curvature.dead[5] = 1;
  LayerInput input(*billm.layer.backend, curvature, {}, "layer");
  LayerProblem problem = billm.problem();
  problem.input = &input;
  const ResidualBinaryMatrix quiet = billm.solve(problem);
  for (int64_t r = 0; r < 16; ++r) billm.layer.weight[size_t(r * 64 + 5)] = 1e3f;
  const ResidualBinaryMatrix loud = billm.solve(problem);
  EXPECT_EQ(quiet.codes, loud.codes);
  EXPECT_EQ(quiet.coefficients, loud.coefficients);
  EXPECT_EQ(loud.salient[5], 0);
}

TEST(Billm, AllInputsDead) {
  Billm billm(4, 16, 6);
  Curvature curvature{16, std::vector<double>(16 * 16), std::vector<uint8_t>(16, 1)};
  LayerInput input(*billm.layer.backend, curvature, {}, "layer");
  LayerProblem problem = billm.problem();
  problem.input = &input;
  const ResidualBinaryMatrix matrix = billm.solve(problem);
  std::vector<float> row(16);
  matrix.decode_row(2, row.data());
  for (float value : row) EXPECT_EQ(value, 0.0f);
}

TEST(Billm, SameForAnyNumberOfThreads) {
  Billm billm(37, 192, 7);
  ResidualBinaryMatrix expected;
  for (const int threads : {1, 2, 5}) {
    const auto backend = find_backend({.device = "cpu", .threads = threads});
    LayerInput input(*backend, activation_curvature(billm.layer.statistics, false), {}, "layer");
    LayerProblem problem = billm.problem();
    problem.input = &input;
    const auto matrix = std::get<ResidualBinaryMatrix>(solve_billm(*backend, problem).matrix);
    if (threads == 1) expected = matrix;
    EXPECT_EQ(matrix.codes, expected.codes);
    EXPECT_EQ(matrix.salient, expected.salient);
    EXPECT_EQ(matrix.coefficients, expected.coefficients);
  }
}

}  // namespace
}  // namespace ballast
