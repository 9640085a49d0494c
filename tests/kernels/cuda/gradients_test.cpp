// Steps back, and activations rounded to grids, on the emulator, against the CPU backend, which is held to f64 differences in
// tests/kernels/gradient_ops_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/attention_gradients.h"
#include "tests/support/backends.h"
#include "tests/support/reference.h"
#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

using test::kRound32;
using test::Random;
using test::same_bits;
using test::view_of;

class SimtGradients : public testing::Test {
 protected:
  /// What `run` gives on both, at most `bound` apart.
  template <class Run>
  void expect_close(const Run& run, double bound) {
    const std::vector<float> expected = run(*cpu_), actual = run(*cuda_);
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], bound) << "element " << i;
  }
  std::unique_ptr<Backend> cpu_ = find_backend({.device = "cpu", .threads = 1});
  std::unique_ptr<Backend> cuda_ = test::emulated_backend();
};

TEST_F(SimtGradients, OfActivations) {
  constexpr int64_t kTokens = 3, kWidth = 300;
  Random random(5);
  std::vector<float> z = random.floats(kTokens * kWidth, -4, 4);
  const std::vector<float> dy = random.floats(kTokens * kWidth);
  z[0] = 0;
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu})
    expect_close(
        [&](Backend& backend) {
          std::vector<float> dz = dy;
          backend.run(ActivationBackward{.activation = activation,
                                         .z = view_of(z, {kTokens, kWidth}),
                                         .dy = view_of(dz, {kTokens, kWidth})});
          return dz;
        },
        32 * kRound32);
}

// x̂ is below sqrt(hidden) and 1/σ about 1 here; sums of `hidden` products of a few roundings each.
TEST_F(SimtGradients, OfLayerNorm) {
  for (const int64_t hidden : {1, 17, 300})
    for (const bool affine : {false, true})
      for (const bool accumulate : {false, true}) {
        Random random{uint64_t(hidden)};
        const std::vector<float> x = random.floats(2 * hidden, -2, 2), dy = random.floats(2 * hidden),
                                 weight = random.floats(hidden), start = random.floats(2 * hidden);
        expect_close(
            [&](Backend& backend) {
              std::vector<float> dx = accumulate ? start : dy;
              LayerNormBackward op{.x = view_of(x, {2, hidden}),
                                   .epsilon = 0.01f,
                                   .dy = view_of(dy, {2, hidden}),
                                   .accumulate = accumulate,
                                   .dx = view_of(dx, {2, hidden})};
              if (affine) op.weight = view_of(weight, {hidden});
              if (!accumulate) op.dy = op.dx;
              backend.run(op);
              return dx;
            },
            kRound32 * 10 * (double(hidden) + 40) * 4);
      }
}

// The bound of the CPU's test, for each of the two.
TEST_F(SimtGradients, OfAttention) {
  const test::AttentionGradients cases[] = {{1, 1, {1}, Mask::causal},
                                            {2, 3, {5, 2}, Mask::full},
                                            {2, 130, {3}, Mask::causal},
                                            {1, 4, {150, 3}, Mask::causal}};
  for (const auto& c : cases) {
    const auto inputs = c.inputs();
    ASSERT_NO_FATAL_FAILURE(
        expect_close([&](Backend& backend) { return c.run(backend, inputs); }, 2 * c.bound()))
        << c.text();
  }
}

TEST_F(SimtGradients, OfCrossEntropy) {
  constexpr int64_t kRows = 3;
  for (const int64_t vocab : {1, 300}) {
    Random random{uint64_t(vocab)};
    const std::vector<float> logits = random.floats(kRows * vocab, -3, 3),
                             teacher = random.floats(kRows * vocab, -3, 3);
    const std::vector<int32_t> targets = {int32_t(vocab - 1), -1, 0};
    for (const bool soft : {false, true}) {
      std::vector<double> losses[2] = {std::vector<double>(kRows), std::vector<double>(kRows)};
      const double bound = kRound32 * (double(vocab) + 16);
      expect_close(
          [&](Backend& backend) {
            std::vector<float> d = logits;
            CrossEntropyBackward op{.scale = 0.25f,
                                    .logits = view_of(d, {kRows, vocab}),
                                    .loss = losses[&backend == cuda_.get()].data()};
            if (soft) {
              op.teacher = view_of(teacher, {kRows, vocab});
            } else {
              op.targets = view_of(targets);
            }
            backend.run(op);
            return d;
          },
          2 * bound);
      for (size_t row = 0; row < kRows; ++row)
        EXPECT_NEAR(losses[1][row], losses[0][row], 8 * bound) << vocab << soft;
    }
  }
}

TEST(SimtRoundActivations, GivesTheBitsOfTheGrid) {
  const auto backend = test::emulated_backend();
  using Kind = ActivationGrid::Kind;
  constexpr int64_t kTokens = 2, kWidth = 700;
  Random random(9);
  std::vector<float> x = random.floats(kTokens * kWidth, -3, 3);
  for (size_t i = 0; i < x.size(); i += 2) x[i] = std::ldexp(std::abs(x[i]), -int(i % 150));
  x[1] = 0, x[3] = -0.0f, x[5] = std::numeric_limits<float>::infinity(), x[7] = -x[5];
  for (const ActivationGrid& grid :
       {ActivationGrid{.kind = Kind::affine, .bits = 4, .step = 0.3f, .zero_point = 6},
        ActivationGrid{.kind = Kind::twin_sign, .bits = 4, .step = 0.02f, .shift = 4},
        ActivationGrid{.kind = Kind::twin_size, .bits = 8, .step = 0.001f, .shift = 5},
        ActivationGrid{.kind = Kind::logarithm, .bits = 4, .step = 1.5f},
        ActivationGrid{.kind = Kind::logarithm, .bits = 8, .step = 2.0f},
        ActivationGrid{.kind = Kind::logarithm, .bits = 8, .step = 1.0f, .per_octave = 2}}) {
    // Where rounding changes, and where one range takes over from the other.
    for (int i = 0; i < 300; ++i) x[size_t(2 * i + 9)] = grid.step * 0.5f * float(i);
    std::vector<float> y(x.size()), expected;
    for (const float value : x) expected.push_back(grid.round(value));
    backend->run(RoundActivations{
        .x = view_of(x, {kTokens, kWidth}), .grid = grid, .y = view_of(y, {kTokens, kWidth})});
    EXPECT_TRUE(same_bits(y, expected)) << name_of(grid.kind) << ", " << grid.bits << " bits";
  }
}

}  // namespace
}  // namespace ballast
