#include "quantize/stages/bias_compensation.h"

#include <gtest/gtest.h>

#include "quantize/methods/gptq.h"
#include "quantize/methods/rtn.h"
#include "tests/quantize/layer_fixture.h"

namespace ballast {
namespace {

TEST(BiasCompensation, ReportsTheErrorsThatADirectComputationGives) {
  const LayerFixture layer(20, 96, 400, 11);
  const AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(3, 0)));
  const auto result =
      compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = layer.statistics, .reference = nullptr, .kind = Compensation::channel});
  EXPECT_NEAR(result.error_before, layer.error(matrix) / layer.power(), 1e-4 * result.error_before);
  EXPECT_NEAR(result.error_after, layer.error(matrix, result.channel) / layer.power(),
              1e-4 * result.error_after);
}

TEST(BiasCompensation, ChannelIsTheBestConstant) {
  const LayerFixture layer(12, 64, 300, 12);
  const AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(2, 0)));
  const auto result =
      compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = layer.statistics, .reference = nullptr, .kind = Compensation::channel});
  EXPECT_LT(result.error_after, result.error_before);
  const double best = layer.error(matrix, result.channel);
  for (size_t r = 0; r < 3; ++r)
    for (float step : {-0.02f, 0.02f}) {
      auto moved = result.channel;
      moved[r] += step;
      EXPECT_GT(layer.error(matrix, moved), best);
    }
}

TEST(BiasCompensation, NoneAddsNothing) {
  const LayerFixture layer(8, 64, 200, 13);
  const AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(3, 0)));
  const auto result =
      compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = layer.statistics, .reference = nullptr, .kind = Compensation::none});
  for (float value : result.channel) EXPECT_EQ(value, 0);
  EXPECT_EQ(result.error_before, result.error_after);
}

// If the bias is free, codes for the centred moment are the better ones (with the bias corrected in both
// cases).
TEST(BiasCompensation, JointBeatsGptqThenChannel) {
  double channel = 0, joint = 0;
  for (uint64_t seed : {21, 22, 23, 24}) {
    const LayerFixture layer(32, 128, 600, seed, 0, 3.0f);
    for (const bool centred : {false, true}) {
      LayerInput input(*layer.backend, activation_curvature(layer.statistics, centred), {}, "layer");
      const AffineMatrix matrix = affine(solve_gptq(*layer.backend, layer.problem(2, 0, &input)));
      const auto result =
          compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = layer.statistics, .reference = nullptr, .kind = Compensation::channel});
      (centred ? joint : channel) += result.error_after;
    }
  }
  EXPECT_LT(joint, channel);
}

TEST(BiasCompensation, PositionRowsAreDeviationsFromTheChannelPart) {
  const int64_t period = 5;
  LayerFixture layer(6, 48, 250, 14, period);
  Statistics statistics(layer.in, period, true);
  for (int64_t t = 0; t < layer.tokens; ++t)  // position 0 stands apart, as the first token of a text does
    if (t % period == 0)
      for (int64_t i = 0; i < layer.in; ++i) layer.x[size_t(t * layer.in + i)] += 4;
  statistics.add(*layer.backend, {layer.x.data(), DType::f32, {layer.tokens, layer.in}},
                 {layer.positions.data(), DType::i32, {layer.tokens}});
  const AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(2, 0)));
  const auto result =
      compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = statistics, .reference = nullptr, .kind = Compensation::position});
  ASSERT_EQ(result.positions, period);
  double after = 0;
  for (int64_t r = 0; r < layer.out; ++r)
    for (int64_t p = 0; p < period; ++p) {
      double mean = 0, squares = 0;
      int64_t count = 0;
      for (int64_t t = p; t < layer.tokens; t += period, ++count) {
        double y = 0;
        for (int64_t i = 0; i < layer.in; ++i)
          y += double(layer.weight[size_t(r * layer.in + i)] - matrix.value(r, i)) *
               double(layer.x[size_t(t * layer.in + i)]);
        mean += y;
        squares += y * y;
      }
      mean /= double(count);
      after += squares - double(count) * mean * mean;
      EXPECT_NEAR(result.channel[size_t(r)] + result.position[size_t(p * layer.out + r)], mean, 2e-3);
    }
  EXPECT_NEAR(result.error_after, after / layer.power(), 2e-3 * result.error_after);
  EXPECT_LT(result.error_after, result.error_before);
}

TEST(BiasCompensation, DriftAddsWhatTheFloatInputsMeansDiffer) {
  const LayerFixture layer(5, 32, 100, 15);
  LayerFixture shifted(5, 32, 100, 15);
  for (float& value : shifted.x) value += 0.25f;
  Statistics reference(layer.in, 0, false);
  reference.add(*layer.backend, {shifted.x.data(), DType::f32, {layer.tokens, layer.in}},
                {layer.positions.data(), DType::i32, {layer.tokens}});
  const AffineMatrix matrix = affine(solve_rtn(*layer.backend, layer.problem(4, 0)));
  const auto plain =
      compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = layer.statistics, .reference = nullptr, .kind = Compensation::channel});
  const auto drift =
      compensate(*layer.backend, {.weight = layer.weight, .target = layer.weight, .quantized = matrix, .input = layer.statistics, .reference = &reference, .kind = Compensation::channel});
  for (int64_t r = 0; r < layer.out; ++r) {
    double shift = 0;
    for (int64_t i = 0; i < layer.in; ++i) shift += 0.25 * double(layer.weight[size_t(r * layer.in + i)]);
    EXPECT_NEAR(drift.channel[size_t(r)] - plain.channel[size_t(r)], shift, 1e-4);
  }
}

}  // namespace
}  // namespace ballast
