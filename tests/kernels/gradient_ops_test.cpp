// Every step back against central differences of an f64 forward.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/attention_gradients.h"
#include "tests/support/backends.h"
#include "tests/support/finite_differences.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::dot;
using test::doubles;
using test::Expected;
using test::IsaTest;
using test::kRound32;
using test::Random;
using test::same_bits;
using test::slopes;
using test::view_of;
using test::within_bounds;

// What central differences may be off by themselves.
constexpr double kDifferences = 1e-8;

class GradientOps : public IsaTest {
 protected:
  /// The same bits from the scalar kernels and from three threads.
  template <class Run>
  void expect_same_everywhere(const Run& run, const std::vector<float>& result) {
    EXPECT_TRUE(same_bits(run(*test::cpu_backend("scalar")), result));
    EXPECT_TRUE(same_bits(run(*test::cpu_backend(GetParam(), 3)), result));
  }
};
BALLAST_FOR_ALL_ISAS(GradientOps);

TEST_P(GradientOps, LayerNorm) {
  const int64_t tokens = 3;
  for (int64_t hidden : {1, 2, 16, 17, 50})
    for (bool affine : {false, true})
      for (bool accumulate : {false, true}) {
        Random random{uint64_t(hidden)};
        const std::vector<float> x = random.floats(tokens * hidden, -2, 2),
                                 dy = random.floats(tokens * hidden);
        const std::vector<float> weight = random.floats(hidden), start = random.floats(tokens * hidden);
        const float epsilon = 0.01f;
        const auto loss = [&](const std::vector<double>& at) {
          std::vector<double> y;
          for (int64_t t = 0; t < tokens; ++t) {
            double mean = 0, variance = 0;
            for (int64_t i = 0; i < hidden; ++i) mean += at[size_t(t * hidden + i)] / double(hidden);
            for (int64_t i = 0; i < hidden; ++i)
              variance += std::pow(at[size_t(t * hidden + i)] - mean, 2) / double(hidden);
            for (int64_t i = 0; i < hidden; ++i)
              y.push_back((at[size_t(t * hidden + i)] - mean) / std::sqrt(variance + double(epsilon)) *
                          (affine ? double(weight[size_t(i)]) : 1));
          }
          return dot(y, dy);
        };
        const auto run = [&](Backend& backend) {
          std::vector<float> dx = accumulate ? start : dy;
          LayerNormBackward op{.x = view_of(x, {tokens, hidden}),
                               .epsilon = epsilon,
                               .dy = view_of(dy, {tokens, hidden}),
                               .accumulate = accumulate,
                               .dx = view_of(dx, {tokens, hidden})};
          if (affine) op.weight = view_of(weight, {hidden});
          if (!accumulate) op.dy = op.dx;
          backend.run(op);
          return dx;
        };
        // |x̂| <= sqrt(hidden), and 1/σ <= 10 scales the three terms; each is a sum of `hidden` products of
        // values that carry some ten roundings (x̂ ones of the mean, too: |x| <= 2, σ >= 0.1).
        const double n = double(hidden);
        const double bound = kRound32 * (n + 40) * 10 * (2 + std::sqrt(n)) * 10 + kDifferences * 10;
        std::vector<Expected> expected;
        for (double slope : slopes(loss, doubles(x)))
          expected.push_back({slope + (accumulate ? double(start[expected.size()]) : 0), bound});
        const std::vector<float> dx = run(*backend_);
        ASSERT_TRUE(within_bounds(dx, expected)) << hidden << affine << accumulate;
        expect_same_everywhere(run, dx);
      }
}

TEST_P(GradientOps, Activations) {
  const int64_t tokens = 4, width = 37;
  Random random(5);
  std::vector<float> z = random.floats(tokens * width, -4, 4);
  const std::vector<float> dy = random.floats(tokens * width);
  z[0] = 0;
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu}) {
    const auto loss = [&](std::vector<double> at) {
      for (double& value : at) {
        if (activation == Activation::relu) value = std::max(value, 0.0);
        if (activation == Activation::gelu) value = value / 2 * (1 + std::erf(value / std::sqrt(2.0)));
      }
      return dot(at, dy);
    };
    const auto run = [&](Backend& backend) {
      std::vector<float> dz = dy;
      backend.run(ActivationBackward{
          .activation = activation, .z = view_of(z, {tokens, width}), .dy = view_of(dz, {tokens, width})});
      return dz;
    };
    std::vector<Expected> expected;
    for (double slope : slopes(loss, doubles(z))) expected.push_back({slope, 32 * kRound32 + kDifferences});
    if (activation == Activation::relu) expected[0].value = 0;  // by definition; the differences see 1/2
    const std::vector<float> dz = run(*backend_);
    EXPECT_TRUE(within_bounds(dz, expected)) << int(activation);
    expect_same_everywhere(run, dz);
  }
}

// Σ out · d_out in f64; x holds q, k and v one after the other.
double attention_loss(const test::AttentionGradients& c, const std::vector<double>& x,
                      const std::vector<float>& d_out) {
  const int64_t width = c.heads * c.head_dim, size = int64_t(x.size()) / 3;
  double loss = 0;
  int64_t first = 0;
  for (int64_t length : c.lengths) {
    for (int64_t head = 0; head < c.heads; ++head)
      for (int64_t t = 0; t < length; ++t) {
        const auto at = [&](int64_t which, int64_t row) {
          return x.data() + which * size + (first + row) * width + head * c.head_dim;
        };
        const int64_t seen = c.mask == Mask::causal ? t + 1 : length;
        double total = 0, mixed = 0;
        for (int64_t j = 0; j < seen; ++j) {
          double score = 0, value = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            score += at(0, t)[d] * at(1, j)[d] / std::sqrt(double(c.head_dim));
            value += at(2, j)[d] * double(d_out[size_t((first + t) * width + head * c.head_dim + d)]);
          }
          total += std::exp(score);
          mixed += std::exp(score) * value;
        }
        loss += mixed / total;
      }
    first += length;
  }
  return loss;
}

TEST_P(GradientOps, Attention) {
  const test::AttentionGradients cases[] = {{1, 1, {1}, Mask::causal},
                                            {2, 3, {5, 2}, Mask::full},
                                            {2, 4, {1, 17}, Mask::causal},
                                            {1, 17, {20}, Mask::full},
                                            {1, 2, {100, 3}, Mask::causal}};
  for (const auto& c : cases) {
    const auto inputs = c.inputs();
    const auto run = [&](Backend& backend) { return c.run(backend, inputs); };
    std::vector<Expected> expected;
    for (double slope :
         slopes([&](const std::vector<double>& at) { return attention_loss(c, at, inputs.d_out); },
                doubles(inputs.x)))
      expected.push_back({slope + 0.5, c.bound() + kDifferences * double(c.tokens())});
    const std::vector<float> d = run(*backend_);
    ASSERT_TRUE(within_bounds(d, expected)) << c.text();
    expect_same_everywhere(run, d);
  }
}

TEST_P(GradientOps, CrossEntropy) {
  const int64_t rows = 3;
  for (int64_t vocab : {1, 2, 16, 99}) {
    Random random{uint64_t(vocab)};
    const std::vector<float> logits = random.floats(rows * vocab, -3, 3),
                             teacher = random.floats(rows * vocab, -3, 3);
    const std::vector<int32_t> targets = {int32_t(vocab - 1), -1, 0};
    const float scale = 0.25f;
    for (bool soft : {false, true}) {
      std::vector<double> losses;
      const auto log_softmax = [&](const auto& z, int64_t row, int64_t i) {
        double total = 0;
        for (int64_t j = 0; j < vocab; ++j) total += std::exp(double(z[size_t(row * vocab + j)]));
        return double(z[size_t(row * vocab + i)]) - std::log(total);
      };
      const auto loss = [&](const std::vector<double>& at) {
        losses.assign(rows, 0);
        for (int64_t row = 0; row < rows; ++row) {
          if (!soft && targets[size_t(row)] >= 0)
            losses[size_t(row)] = -log_softmax(at, row, targets[size_t(row)]);
          for (int64_t i = 0; soft && i < vocab; ++i) {
            const double r = log_softmax(teacher, row, i);
            losses[size_t(row)] += std::exp(r) * (r - log_softmax(at, row, i));
          }
        }
        return double(scale) * (losses[0] + losses[1] + losses[2]);
      };
      std::vector<double> seen(rows);
      const auto run = [&](Backend& backend) {
        std::vector<float> d = logits;
        CrossEntropyBackward op{.scale = scale, .logits = view_of(d, {rows, vocab}), .loss = seen.data()};
        if (soft) {
          op.teacher = view_of(teacher, {rows, vocab});
        } else {
          op.targets = view_of(targets);
        }
        backend.run(op);
        return d;
      };
      std::vector<Expected> expected;
      const double bound = kRound32 * (double(vocab) + 16);
      for (double slope : slopes(loss, doubles(logits))) expected.push_back({slope, bound + kDifferences});
      const std::vector<float> d = run(*backend_);
      EXPECT_TRUE(within_bounds(d, expected)) << vocab << soft;
      loss(doubles(logits));
      for (size_t row = 0; row < size_t(rows); ++row)
        EXPECT_NEAR(seen[row], losses[row], bound * 4) << vocab << soft;
      expect_same_everywhere(run, d);
    }
  }
}

TEST_P(GradientOps, LinearInputByRankUpdate) {
  const int64_t tokens = 13, in = 21, out = 35;
  Random random(8);
  const std::vector<float> x = random.floats(tokens * in), weight = random.floats(out * in);
  const std::vector<float> dy = random.floats(tokens * out), start = random.floats(tokens * in);
  const auto loss = [&](const std::vector<double>& at) {
    std::vector<double> y(dy.size());
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < out; ++r)
        for (int64_t i = 0; i < in; ++i)
          y[size_t(t * out + r)] += at[size_t(t * in + i)] * double(weight[size_t(r * in + i)]);
    return dot(y, dy);
  };
  std::vector<float> dx = start;
  backend_->run(RankUpdate{.e = view_of(dy, {tokens, out}),
                           .u = view_of(weight, {out, in}),
                           .w = view_of(dx, {tokens, in}),
                           .add = true});
  std::vector<Expected> expected;
  for (double slope : slopes(loss, doubles(x)))
    expected.push_back({slope + double(start[expected.size()]),
                        kRound32 * double(out + 1) * double(out + 1) + kDifferences});
  EXPECT_TRUE(within_bounds(dx, expected));
}

TEST(GradientContracts, AreChecked) {
  const auto backend = test::cpu_backend("scalar");
  std::vector<float> a(12), b(12);
  const OutputView x = view_of(a, {3, 4}), y = view_of(b, {3, 4});
  const std::vector<AttentionSpan> spans = {{.first_row = 0, .rows = 3, .past = 1}};
  EXPECT_THROW(
      backend->run(AttentionBackward{
          .q = x, .k = x, .v = x, .d_out = x, .dq = y, .dk = y, .dv = y, .spans = spans, .heads = 2}),
      ContractError);
  EXPECT_THROW(backend->run(LayerNormBackward{.x = x, .dy = y, .accumulate = true, .dx = y}), ContractError);
  double loss[3];
  const std::vector<int32_t> targets = {0, 4, 1};
  EXPECT_THROW(backend->run(CrossEntropyBackward{.targets = view_of(targets), .logits = x, .loss = loss}),
               ContractError);
  EXPECT_THROW(backend->run(CrossEntropyBackward{.logits = x, .loss = loss}), ContractError);
}

}  // namespace
}  // namespace ballast
