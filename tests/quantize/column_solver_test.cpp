#include "quantize/column_solver.h"

#include <gtest/gtest.h>

#include "quantize/affine_fit.h"
#include "quantize/methods/gptq.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

// GPTQ's rounding one weight at a time, as methods without an op of their own do it.
struct WeightByWeight final : ColumnRounder {
  WeightByWeight(AffineMatrix& out, const GridOptions& grid)
      : matrix(out), options(grid), grids(matrix.scales.size()) {}
  void start_group(int64_t row, int64_t group, std::span<const float> weights) override {
    Grid& grid = grids[size_t(row * matrix.groups() + group)];
    grid = fit_grid(weights, options);
    store_grid(matrix, row, group, grid);
  }
  float round(int64_t row, int64_t column, float weight) override {
    const Grid& grid = grids[size_t(row * matrix.groups() + column / matrix.group_size)];
    const int code = grid.code(weight);
    matrix.codes[size_t(row * matrix.in_features + column)] = uint8_t(code);
    return grid.value(code);
  }
  AffineMatrix& matrix;
  const GridOptions& options;
  std::vector<Grid> grids;
};

TEST(ColumnSolver, BlocksAtOnceGiveWhatWeightByWeightGives) {
  struct Setting {
    int64_t group;
    bool act_order;
  };
  for (const Setting setting :
       {Setting{0, false}, {32, false}, {96, false}, {192, false}, {768, false}, {64, true}}) {
    SCOPED_TRACE(str("groups of ", setting.group, setting.act_order ? ", act-order" : ""));
    const LayerFixture layer(37, 768, 1200, 6);
    LayerInput input(*layer.backend, activation_curvature(layer.statistics, false),
                     {.act_order = setting.act_order}, "layer");
    LayerProblem problem = layer.problem(3, setting.group, &input);
    problem.static_groups = setting.act_order;
    const AffineMatrix fast = affine(solve_gptq(*layer.backend, problem));
    AffineMatrix slow = empty_matrix(problem);
    WeightByWeight rounder(slow, problem.grid);
    const bool dynamic = !setting.act_order && setting.group != 0;
    if (!dynamic)
      for (int64_t row = 0; row < layer.out; ++row)
        for (int64_t group = 0; group < slow.groups(); ++group)
          rounder.start_group(row, group,
                              problem.weight.subspan(size_t(row * layer.in + group * slow.group_size),
                                                     size_t(slow.group_size)));
    solve_columns(*layer.backend, input.factor(),
                  {.rows = layer.out,
                   .weight = {problem.weight.begin(), problem.weight.end()},
                   .group_size = slow.group_size,
                   .dynamic_groups = dynamic},
                  rounder);
    int64_t different = 0;
    for (size_t i = 0; i < fast.codes.size(); ++i) different += fast.codes[i] != slow.codes[i];
    // A tie decided otherwise in f32 moves later columns of its row; most rows must not differ at all.
    EXPECT_LE(different, int64_t(fast.codes.size()) / 50);
    EXPECT_NEAR(layer.error(fast) / layer.error(slow), 1, 0.02);
  }
}

TEST(ColumnSolver, FactorAndCurvatureShareAMatrixUntilBothAreWanted) {
  const LayerFixture layer(4, 70, 300, 7);
  const Curvature whole = activation_curvature(layer.statistics, true);
  for (const bool act_order : {false, true}) {
    LayerInput input(*layer.backend, whole, {.act_order = act_order}, "layer");
    const double before = input.output_power(layer.weight);
    std::vector<float> shared(70 * 70), apart(70 * 70);
    input.factor().rows(0, 70, shared.data());
    EXPECT_TRUE(input.factor().holds_curvature());
    EXPECT_NEAR(input.output_power(layer.weight), before, 70 * 0x1p-24 * 10 * before);
    EXPECT_EQ(input.curvature().h, whole.h);
    EXPECT_FALSE(input.factor().holds_curvature());
    input.factor().rows(0, 70, apart.data());
    EXPECT_EQ(apart, shared);
    EXPECT_EQ(input.factor().diagonal(69), double(apart.back()));
    EXPECT_NEAR(before, layer.power() / double(layer.tokens), 1e-5 * before);
  }
}

TEST(ColumnSolver, MovedStatisticsGiveTheSameCurvatureAndKeepTheirMeans) {
  const LayerFixture layer(4, 40, 100, 8);
  Statistics statistics = layer.statistics;
  const Curvature moved = activation_curvature(std::move(statistics), true);
  EXPECT_EQ(moved.h, activation_curvature(layer.statistics, true).h);
  EXPECT_EQ(statistics.mean(), layer.statistics.mean());
  EXPECT_TRUE(statistics.moment.empty());
}

TEST(QuadraticForm, MatchesTheDefinition) {
  const auto backend = find_backend({.device = "cpu"});
  std::mt19937_64 random(9);
  std::normal_distribution<float> normal;
  for (const int64_t size : {1, 255, 300})
    for (const int64_t rows : {1, 5}) {
      std::vector<double> m(size_t(size * size));
      std::vector<float> a(size_t(rows * size));
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j <= i; ++j)
          m[size_t(i * size + j)] = m[size_t(j * size + i)] = double(normal(random));
      for (float& value : a) value = normal(random);
      double expected = 0, magnitude = 0;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < size; ++i)
          for (int64_t j = 0; j < size; ++j) {
            const double term =
                double(a[size_t(r * size + i)]) * m[size_t(i * size + j)] * double(a[size_t(r * size + j)]);
            expected += term;
            magnitude += std::abs(term);
          }
      // Above the diagonal nothing is read.
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = i + 1; j < size; ++j) m[size_t(i * size + j)] = NAN;
      EXPECT_NEAR(quadratic_form(*backend, symmetric_view(m, size), a), expected,
                  double(size + 2) * 0x1p-24 * magnitude);
    }
}

}  // namespace
}  // namespace ballast
