#include "quantize/methods/spqr.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "quantize/methods/gptq.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

struct Spqr {
  LayerFixture layer;
  LayerInput input;
  Spqr(int64_t rows, int64_t columns, uint64_t seed, double damping = 0.01)
      : layer(rows, columns, 6 * columns, seed),
        input(*layer.backend, activation_curvature(layer.statistics, false), {.damping = damping}, "layer") {}
  LayerProblem problem(int bits, int64_t group, MethodOptions options = {}) {
    LayerProblem out = layer.problem(bits, group, &input);
    out.options = options;
    return out;
  }
  SparseOutlierMatrix solve(const LayerProblem& problem) {
    const LayerSolution solution = solve_spqr(*layer.backend, problem);
    auto matrix = std::get<SparseOutlierMatrix>(solution.matrix);
    matrix.check("matrix");
    return matrix;
  }
};

// A straightforward f64 form: all the weights of a tile of rows, one column at a time. Leave-one-out grids are
// fitted for every weight, statistics are decoded from binary16 as the encoding says.
struct NaiveSpqr {
  const LayerProblem& problem;
  const InverseFactor& factor;
  double threshold = 0;
  std::vector<double> w;
  std::vector<std::vector<double>> q;
  int64_t outliers = 0;

  NaiveSpqr(const LayerProblem& p, const InverseFactor& f)
      : problem(p), factor(f), w(p.weight.begin(), p.weight.end()) {
    const int64_t rows = p.out_features, n = p.in_features;
    for (int64_t j = 0; j < n; ++j) {
      double mean = 0, variance = 0;
      for (int64_t r = 0; r < rows; ++r) mean += w[size_t(r * n + j)] / double(rows);
      for (int64_t r = 0; r < rows; ++r)
        variance += std::pow(w[size_t(r * n + j)] - mean, 2) / double(rows - 1);
      threshold += variance / std::pow(factor.diagonal(j), 2) / double(n);
    }
    threshold *= p.options.outlier_threshold;
    q.assign(size_t(rows), std::vector<double>(size_t(n)));
    for (int64_t group = 0; group < n / p.grid.group_size; ++group) solve_group(group);
  }

  using Grid = std::array<double, 4>;  // scale, zero, low, high
  static Grid grid(const std::vector<double>& values, double top) {
    const double low = *std::min_element(values.begin(), values.end());
    const double high = *std::max_element(values.begin(), values.end());
    return {(high - low) / top, -low / ((high - low) / top), low, high};
  }
  double top() const { return double((1 << problem.grid.bits) - 1); }
  double rounded(const Grid& g, double value) const {
    return g[0] * (std::clamp(std::nearbyint(value / g[0] + g[1]), 0.0, top()) - g[1]);
  }
  double cost(double error, int64_t column) const { return std::pow(error / factor.diagonal(column), 2); }

  Grid fit(int64_t row, int64_t first) const {
    const int64_t size = problem.grid.group_size, n = problem.in_features;
    const auto at = [&](int64_t i) { return w[size_t(row * n + first + i)]; };
    const auto others = [&](int64_t out) {
      std::vector<double> values;
      for (int64_t i = 0; i < size; ++i)
        if (i != out) values.push_back(at(i));
      return values;
    };
    const auto error = [&](const Grid& g, int64_t out) {
      double sum = 0;
      for (int64_t i = 0; i < size; ++i)
        if (i != out) sum += cost(at(i) - rounded(g, at(i)), first + i);
      return sum;
    };
    const Grid all = grid(others(-1), top());
    std::vector<double> kept;
    for (int64_t i = 0; i < size; ++i)
      if (!(error(all, -1) - error(grid(others(i), top()), i) > threshold)) kept.push_back(at(i));
    return kept.empty() ? all : grid(kept, top());
  }

  // Min-max over the rows of a tile; decoded from binary16 limits.
  void level(std::vector<Grid>& grids, size_t first, size_t last, size_t field) const {
    double low = INFINITY, high = -INFINITY;
    for (size_t r = first; r < last; ++r)
      low = std::min(low, grids[r][field]), high = std::max(high, grids[r][field]);
    const double levels = double((1 << problem.options.stat_bits) - 1);
    low = double(f16_to_f32(f32_to_f16(float(low))));
    const double step = double(f16_to_f32(f32_to_f16(float((high - low) / levels))));
    for (size_t r = first; r < last; ++r)
      grids[r][field] = low + step * std::clamp(std::nearbyint((grids[r][field] - low) / step), 0.0, levels);
  }

  void solve_group(int64_t group) {
    const int64_t size = problem.grid.group_size, n = problem.in_features, rows = problem.out_features;
    std::vector<Grid> grids;
    for (int64_t r = 0; r < rows; ++r) grids.push_back(fit(r, group * size));
    for (int64_t first = 0; first < rows; first += 16) {
      const size_t last = size_t(std::min(rows, first + 16));
      level(grids, size_t(first), last, 0);
      for (size_t r = size_t(first); r < last; ++r)
        grids[r][1] = top() / 2 - (grids[r][2] + grids[r][3]) / 2 / grids[r][0];
      level(grids, size_t(first), last, 1);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = group * size; j < (group + 1) * size; ++j) {
        double* row = w.data() + r * n;
        double value = rounded(grids[size_t(r)], row[j]);
        if (cost(row[j] - value, j) > threshold)
          value = double(f16_to_f32(f32_to_f16(float(row[j])))), ++outliers;
        q[size_t(r)][size_t(j)] = value;
        std::vector<float> u(static_cast<size_t>(n - j));
        factor.rows(j, 1, u.data());
        const double feedback = (row[j] - value) / factor.diagonal(j);
        for (int64_t k = j + 1; k < n; ++k) row[k] -= feedback * double(u[size_t(k - j)]);
      }
  }
};

TEST(Spqr, AgreesWithANaiveForm) {
  Spqr spqr(40, 96, 1);
  for (const int bits : {2, 3, 4}) {
    const LayerProblem problem = spqr.problem(bits, 16);
    const SparseOutlierMatrix fast = spqr.solve(problem);
    const NaiveSpqr slow(problem, spqr.input.factor());
    EXPECT_GT(slow.outliers, 0);
    EXPECT_NEAR(double(fast.outlier_columns.size()), double(slow.outliers), 2 + 0.05 * double(slow.outliers));
    int64_t different = 0;
    double fast_error = 0, slow_error = 0;
    std::vector<float> row(96);
    for (int64_t r = 0; r < 40; ++r) {
      fast.decode_row(r, row.data());
      for (size_t j = 0; j < 96; ++j) different += std::fabs(double(row[j]) - slow.q[size_t(r)][j]) > 1e-3;
      for (int64_t t = 0; t < spqr.layer.tokens; ++t) {
        double a = 0, b = 0;
        for (size_t j = 0; j < 96; ++j) {
          const double w = double(spqr.layer.weight[size_t(r) * 96 + j]),
                       x = double(spqr.layer.x[size_t(t) * 96 + j]);
          a += (w - double(row[j])) * x, b += (w - slow.q[size_t(r)][j]) * x;
        }
        fast_error += a * a, slow_error += b * b;
      }
    }
    // One tie decided otherwise in f32 changes what follows in its row, and through shared statistics its tile.
    EXPECT_LE(different, 40 * 96 / 10) << bits;
    EXPECT_NEAR(fast_error / slow_error, 1, 0.05) << bits;
  }
}

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

TEST(Spqr, PlantedWeightsAreFoundAndKept) {
  Spqr spqr(32, 128, 2);
  for (int64_t r = 0; r < 32; ++r)
    spqr.layer.weight[size_t(r * 128 + (r * 37) % 128)] = r % 2 ? 25.0f : -25.0f;
  const LayerProblem problem = spqr.problem(3, 16);
  const SparseOutlierMatrix matrix = spqr.solve(problem);
  for (int64_t r = 0; r < 32; ++r) {
    const auto begin = matrix.outlier_columns.begin() + matrix.outlier_rows[size_t(r)];
    const auto end = matrix.outlier_columns.begin() + matrix.outlier_rows[size_t(r) + 1];
    const auto found = std::find(begin, end, uint16_t((r * 37) % 128));
    ASSERT_NE(found, end) << r;
    const float value = f16_to_f32(matrix.outlier_values[size_t(found - matrix.outlier_columns.begin())]);
    // Stored as it was when its turn came, with earlier errors fed back.
    EXPECT_NEAR(std::fabs(value), 25, 5) << r;
  }
  const AffineMatrix gptq = affine(solve_gptq(*spqr.layer.backend, problem));
  EXPECT_LT(output_error(spqr.layer, matrix), 0.2 * output_error(spqr.layer, gptq));
}

TEST(Spqr, NearLosslessAtFourBitsAndMonotoneInItsSettings) {
  Spqr spqr(48, 160, 3);
  const double power = spqr.layer.power();
  const double four = output_error(spqr.layer, spqr.solve(spqr.problem(4, 16)));
  const double three = output_error(spqr.layer, spqr.solve(spqr.problem(3, 16)));
  const double coarse = output_error(spqr.layer, spqr.solve(spqr.problem(3, 16, {.stat_bits = 2})));
  const double none =
      output_error(spqr.layer, spqr.solve(spqr.problem(3, 16, {.outlier_threshold = INFINITY})));
  EXPECT_LT(four, 1e-3 * power);
  EXPECT_LT(four, three);
  EXPECT_LT(three, coarse);
  EXPECT_LT(three, none);
}

TEST(Spqr, NoOutliersWithoutAThreshold) {
  Spqr spqr(20, 64, 4);
  const SparseOutlierMatrix matrix = spqr.solve(spqr.problem(2, 16, {.outlier_threshold = INFINITY}));
  EXPECT_TRUE(matrix.outlier_columns.empty());
}

TEST(Spqr, BitsAreWhatTheFileHolds) {
  Spqr spqr(40, 96, 5);
  const SparseOutlierMatrix matrix = spqr.solve(spqr.problem(3, 16, {.stat_bits = 4}));
  const double groups = 96 / 16, tiles = 3, outliers = double(matrix.outlier_values.size());
  const double bits = 3 * 40 * 96                // codes
                      + 2 * 4 * 40 * groups      // a scale and a zero point code per row and group
                      + 4 * 16 * tiles * groups  // lowest value and step of both
                      + 32 * 41                  // row offsets
                      + (16 + 16) * outliers;    // column and value
  EXPECT_GT(outliers, 0);
  EXPECT_DOUBLE_EQ(matrix.bits_per_weight(), bits / (40 * 96));
}

TEST(Spqr, IdentityCurvatureRoundsToTheNearestLevel) {
  const LayerFixture layer(20, 64, 8, 6);
  Curvature identity{64, std::vector<double>(64 * 64), std::vector<uint8_t>(64)};
  for (size_t i = 0; i < 64; ++i) identity.h[i * 65] = 1;
  LayerInput input(*layer.backend, identity, {}, "layer");
  LayerProblem problem = layer.problem(3, 16, &input);
  problem.options.outlier_threshold = INFINITY;
  const auto matrix = std::get<SparseOutlierMatrix>(solve_spqr(*layer.backend, problem).matrix);
  std::vector<float> row(64);
  for (int64_t r = 0; r < 20; ++r) {
    matrix.decode_row(r, row.data());
    for (int64_t j = 0; j < 64; ++j) {
      const float scale = matrix.scale(r, j / 16), zero = matrix.zero(r, j / 16);
      const float weight = layer.weight[size_t(r * 64 + j)];
      const float lowest = -scale * zero, highest = scale * (7 - zero);
      const double allowed = weight < lowest    ? lowest - weight
                             : weight > highest ? weight - highest
                                                : 0.5 * scale;
      EXPECT_LE(std::fabs(row[size_t(j)] - weight), allowed * (1 + 1e-5)) << r << ", " << j;
    }
  }
}

TEST(Spqr, DeadInputsAndDeadRowsAreHarmless) {
  Spqr spqr(20, 64, 7);
  Curvature curvature = activation_curvature(spqr.layer.statistics, false);
  for (int64_t i = 0; i < 64; ++i) curvature.h[size_t(5 * 64 + i)] = curvature.h[size_t(i * 64 + 5)] = 0;
  curvature.dead[5] = 1;
  LayerInput input(*spqr.layer.backend, curvature, {}, "layer");
  std::fill_n(spqr.layer.weight.begin() + 3 * 64, 64, 0.0f);
  std::fill_n(spqr.layer.weight.begin() + 4 * 64, 64, 0.25f);
  spqr.layer.weight[5] = 1e6f;  // meets only zeros
  const SparseOutlierMatrix matrix = spqr.solve(spqr.layer.problem(4, 16, &input));
  std::vector<float> row(64);
  matrix.decode_row(3, row.data());
  for (float value : row) EXPECT_EQ(value, 0.0f);
  matrix.decode_row(0, row.data());
  EXPECT_LT(std::fabs(row[5]), 10.0f);
}

TEST(Spqr, HugeOutliersAreRefused) {
  Spqr spqr(20, 64, 8);
  spqr.layer.weight[70] = 1e5f;
  EXPECT_THROW(spqr.solve(spqr.problem(4, 16, {.outlier_threshold = 1e-9})), Error);
}

TEST(Spqr, SameForAnyNumberOfThreads) {
  Spqr spqr(37, 96, 9);
  SparseOutlierMatrix expected;
  for (const int threads : {1, 2, 5}) {
    const auto backend = find_backend({.device = "cpu", .threads = threads});
    LayerInput input(*backend, activation_curvature(spqr.layer.statistics, false), {}, "layer");
    const auto matrix =
        std::get<SparseOutlierMatrix>(solve_spqr(*backend, spqr.layer.problem(3, 16, &input)).matrix);
    if (threads == 1) expected = matrix;
    EXPECT_EQ(matrix.codes, expected.codes);
    EXPECT_EQ(matrix.stats, expected.stats);
    EXPECT_EQ(matrix.outlier_columns, expected.outlier_columns);
    EXPECT_EQ(matrix.outlier_values, expected.outlier_values);
  }
}

}  // namespace
}  // namespace ballast
