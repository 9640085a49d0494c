#include "kernels/ops/layernorm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::Expected;
using test::IsaTest;
using test::kRound32;
using test::Random;
using test::same_bits;
using test::view_of;

struct Case {
  int64_t tokens = 0, hidden = 0;
  std::vector<float> x, weight, bias;
  float epsilon = 1e-5f;
};

// The mean is off by (n + 1) roundings of mean|x|, which every centred value inherits beside its own
// rounding; the variance, all of whose terms are positive, is off by n + 4 relative roundings and twice the
// centring's.
std::vector<Expected> reference(const Case& c) {
  std::vector<Expected> out;
  const double n = double(c.hidden);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* x = c.x.data() + t * c.hidden;
    double sum = 0, magnitude = 0, squares = 0;
    for (int64_t i = 0; i < c.hidden; ++i) {
      sum += x[i];
      magnitude += std::abs(x[i]);
    }
    const double mean = sum / n;
    for (int64_t i = 0; i < c.hidden; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const double deviation = std::sqrt(squares / n + c.epsilon);
    const double centring = (n + 1) * kRound32 * magnitude / n;
    const double relative = (n + 8) * kRound32 + centring / deviation;
    for (int64_t i = 0; i < c.hidden; ++i) {
      const double unit = (x[i] - mean) / deviation;
      const double weight = c.weight.empty() ? 1 : c.weight[size_t(i)];
      const double value = unit * weight + (c.bias.empty() ? 0 : c.bias[size_t(i)]);
      const double bound = std::abs(weight) * (centring / deviation + std::abs(unit) * relative);
      out.push_back({value, bound + kRound32 * (std::abs(value) + bound)});
    }
  }
  return out;
}

LayerNorm op_for(const Case& c, std::vector<float>& y) {
  LayerNorm op{
      .x = view_of(c.x, {c.tokens, c.hidden}), .epsilon = c.epsilon, .y = view_of(y, {c.tokens, c.hidden})};
  if (!c.weight.empty()) op.weight = view_of(c.weight, {c.hidden});
  if (!c.bias.empty()) op.bias = view_of(c.bias, {c.hidden});
  return op;
}
std::vector<float> run(Backend& backend, const Case& c) {
  std::vector<float> y(c.x.size());
  backend.run(op_for(c, y));
  return y;
}

class LayerNormOp : public IsaTest {};
BALLAST_FOR_ALL_ISAS(LayerNormOp);

TEST_P(LayerNormOp, MatchesF64ForAnyWidth) {
  for (int64_t hidden : {1, 2, 15, 16, 17, 31, 64, 100, 768, 1023})
    for (float offset : {0.0f, 20.0f})
      for (int parts = 0; parts < 4; ++parts) {
        Random random{uint64_t(hidden * 8 + parts)};
        Case c{.tokens = 5, .hidden = hidden, .x = random.floats(5 * hidden, offset - 2, offset + 2)};
        if (parts & 1) c.weight = random.floats(hidden);
        if (parts & 2) c.bias = random.floats(hidden);
        const std::vector<float> y = run(*backend_, c);
        ASSERT_TRUE(within_bounds(y, reference(c))) << "hidden " << hidden << ", parts " << parts;
        ASSERT_TRUE(same_bits(y, run(*test::cpu_backend("scalar"), c))) << "hidden " << hidden;
        ASSERT_TRUE(same_bits(y, run(*test::cpu_backend(GetParam(), 2), c))) << "hidden " << hidden;
      }
}

TEST_P(LayerNormOp, EpsilonKeepsConstantRowsFinite) {
  const Case c{.tokens = 1, .hidden = 20, .x = std::vector<float>(20, 0.25f), .epsilon = 1e-12f};
  for (float value : run(*backend_, c)) EXPECT_EQ(value, 0);
}

TEST_P(LayerNormOp, EpsilonIsInsideTheRoot) {
  const Case c{.tokens = 1, .hidden = 2, .x = {-1, 1}, .epsilon = 3};
  EXPECT_EQ(run(*backend_, c), (std::vector<float>{-0.5f, 0.5f}));
}

TEST_P(LayerNormOp, OutputMayBeTheInput) {
  Random random(3);
  Case c{.tokens = 7,
         .hidden = 50,
         .x = random.floats(350),
         .weight = random.floats(50),
         .bias = random.floats(50)};
  const std::vector<float> expected = run(*backend_, c);
  LayerNorm op = op_for(c, c.x);
  backend_->run(op);
  EXPECT_TRUE(same_bits(c.x, expected));
}

TEST_P(LayerNormOp, WrongWidthIsNamed) {
  Case c{.tokens = 1, .hidden = 4, .x = std::vector<float>(4), .weight = std::vector<float>(4)};
  std::vector<float> y(4);
  LayerNorm op = op_for(c, y);
  op.weight.shape.dims[0] = 3;
  const std::string message = test::message_of<ContractError>([&] { backend_->run(op); });
  EXPECT_NE(message.find("layernorm: hidden is 3 in weight but 4 in x"), std::string::npos) << message;
}

}  // namespace
}  // namespace ballast
