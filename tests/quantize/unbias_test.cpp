#include "quantize/unbias.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quantize/methods/comq.h"
#include "quantize/methods/rtn.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

// w·H·vᵀ of one row, in f64.
double product(const LayerFixture& layer, const Curvature& curvature, const AffineMatrix* matrix,
               int64_t row) {
  double sum = 0;
  for (int64_t i = 0; i < layer.in; ++i)
    for (int64_t j = 0; j < layer.in; ++j)
      sum += double(layer.weight[size_t(row * layer.in + i)]) * curvature.h[size_t(i * layer.in + j)] *
             (matrix ? double(matrix->value(row, j)) : double(layer.weight[size_t(row * layer.in + j)]));
  return sum;
}

TEST(Unbias, ErrorsBecomeOrthogonalToTheOutput) {
  const LayerFixture layer(24, 128, 800, 1);
  const Curvature curvature = activation_curvature(layer.statistics, false);
  LayerInput input(*layer.backend, curvature, {}, "layer");
  LayerProblem problem = layer.problem(2, 32, &input);
  problem.options.unbiased_scales = false;
  const AffineMatrix shrunk = affine(solve_comq(*layer.backend, problem));
  AffineMatrix matrix = shrunk;
  unbias(*layer.backend, layer.weight, curvature, 0, matrix);
  EXPECT_EQ(matrix.codes, shrunk.codes);
  double mean = 0;
  for (int64_t row = 0; row < layer.out; ++row) {
    const double own = product(layer, curvature, nullptr, row);
    mean += product(layer, curvature, &shrunk, row) / own / double(layer.out);
    // Each scale is off by up to half a unit of eleven bits.
    EXPECT_NEAR(product(layer, curvature, &matrix, row) / own, 1, 0x1p-11 * 1.01) << row;
  }
  EXPECT_LT(mean, 0.999);
}

TEST(Unbias, GainsAreWhatAMultipleNeeds) {
  LayerFixture layer(6, 32, 200, 2);
  const Curvature curvature = activation_curvature(layer.statistics, false);
  AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(8, 0)));
  for (int64_t row = 0; row < 6; ++row) {  // the matrix itself, times 1, 0.8, 0.6, …, so that gains are known
    matrix.decode_row(row, layer.weight.data() + row * 32);
    for (int64_t j = 0; j < 32; ++j) layer.weight[size_t(row * 32 + j)] *= 1 - 0.2f * float(row);
  }
  const std::vector<float> gains = output_gains(*layer.backend, layer.weight, curvature, 0.01, matrix);
  for (int64_t row = 0; row < 3; ++row) EXPECT_NEAR(gains[size_t(row)], 1 - 0.2f * float(row), 1e-4f);
  EXPECT_EQ(gains[5], 1.0f);  // no output at all
  EXPECT_EQ(gains[4], 1.0f);  // beyond a factor of two, something else is wrong
}

TEST(Unbias, ScalesStayNormal) {
  const LayerFixture layer(4, 32, 200, 3);
  const Curvature curvature = activation_curvature(layer.statistics, false);
  AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(4, 16)));
  std::vector<float> weight = layer.weight;
  for (uint16_t& scale : matrix.scales) scale = f32_to_f16(0x1p-14f);
  for (int64_t row = 0; row < 4; ++row) {
    matrix.decode_row(row, weight.data() + row * 32);
    for (int64_t j = 0; j < 32; ++j) weight[size_t(row * 32 + j)] *= 0.7f;
  }
  unbias(*layer.backend, weight, curvature, 0, matrix);
  for (uint16_t scale : matrix.scales) EXPECT_EQ(scale, f32_to_f16(0x1p-14f));
}

}  // namespace
}  // namespace ballast
