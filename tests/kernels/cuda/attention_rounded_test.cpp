// Attention with rounded probabilities, on the emulator, against f64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/ops/attention.h"
#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

using test::Expected;
using test::kRound32;
using test::Random;
using test::view_of;

struct Setting {
  int64_t heads = 2, head_dim = 12;
  Mask mask = Mask::full;
  ActivationGrid grid;
  int64_t width() const { return heads * head_dim; }
  float scale() const { return 1 / std::sqrt(float(head_dim)); }
};
struct Operands {
  std::vector<float> q, k, v;
};

// One row of one head, a span of `rows` that begins at row `first`. With e the relative error of a probability (head_dim + 2
// roundings of the score's sizes, twice, and some of exponentials and sums) its code is that of p · (1 − e), p or p · (1 + e);
// products and sums then are off by a rounding for each position.
void one_row(const Setting& setting, const Operands& x, int64_t first, int64_t rows, int64_t row,
             int64_t head, std::vector<Expected>& out, int64_t& undecided) {
  const int64_t dim = setting.head_dim, width = setting.width();
  const int64_t seen = setting.mask == Mask::causal ? row + 1 : rows;
  const auto at = [&](const std::vector<float>& data, int64_t t, int64_t d) {
    return double(data[size_t((first + t) * width + head * dim + d)]);
  };
  std::vector<double> p(static_cast<size_t>(seen)), slack(static_cast<size_t>(seen));
  double top = -INFINITY, total = 0, error = 0;
  for (int64_t j = 0; j < seen; ++j) {
    double score = 0, size = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const double product = setting.scale() * at(x.q, row, d) * at(x.k, j, d);
      score += product, size += std::abs(product);
    }
    p[size_t(j)] = score;
    top = std::max(top, score);
    error = std::max(error, size * double(dim + 2) * kRound32);
  }
  for (double& score : p) total += (score = std::exp(score - top));
  const double relative = 2.2 * error + double(seen + 20) * kRound32;
  for (int64_t j = 0; j < seen; ++j) {
    const double exact = p[size_t(j)] / total;
    const float code = setting.grid.round(float(exact));
    for (const double factor : {1 - relative, 1 + relative})
      slack[size_t(j)] =
          std::max(slack[size_t(j)], std::abs(double(setting.grid.round(float(exact * factor))) - code));
    undecided += slack[size_t(j)] > 0;
    p[size_t(j)] = code;
  }
  for (int64_t d = 0; d < dim; ++d) {
    double value = 0, size = 0, bound = 1e-30;
    for (int64_t j = 0; j < seen; ++j) {
      value += p[size_t(j)] * at(x.v, j, d);
      size += (p[size_t(j)] + slack[size_t(j)]) * std::abs(at(x.v, j, d));
      bound += slack[size_t(j)] * std::abs(at(x.v, j, d));
    }
    out.push_back({value, bound + double(seen + 2) * kRound32 * size});
  }
}

TEST(SimtRoundedAttention, ProbabilitiesHaveTheCodesOfTheirGrid) {
  using Kind = ActivationGrid::Kind;
  const ActivationGrid grids[] = {{.kind = Kind::affine, .bits = 8, .step = 1.0f / 255},
                                  {.kind = Kind::affine, .bits = 4, .step = 0.02f},
                                  {.kind = Kind::twin_size, .bits = 8, .step = 1.0f / 127 / 32, .shift = 5},
                                  {.kind = Kind::twin_size, .bits = 4, .step = 1.0f / 7 / 64, .shift = 6},
                                  {.kind = Kind::logarithm, .bits = 4, .step = 1, .per_octave = 1},
                                  {.kind = Kind::logarithm, .bits = 6, .step = 0.4f, .per_octave = 2}};
  const std::vector<int64_t> lengths{150, 7, 1, 129};
  for (const int64_t head_dim : {5, 12, 64, 80})
    for (const Mask mask : {Mask::full, Mask::causal})
      for (const ActivationGrid& grid : grids) {
        if (mask == Mask::causal && grid.bits == 8) continue;
        if (head_dim > 12 && grid.bits != 4) continue;
        SCOPED_TRACE(str("heads of ", head_dim, ", ", name_of(grid.kind), ", ", grid.bits, " bits"));
        const Setting setting{.head_dim = head_dim, .mask = mask, .grid = grid};
        Random random{uint64_t(head_dim)};
        std::vector<AttentionSpan> spans;
        int64_t tokens = 0;
        for (const int64_t rows : lengths) {
          spans.push_back({int32_t(tokens), int32_t(rows), 0, nullptr});
          tokens += rows;
        }
        const int64_t count = tokens * setting.width();
        const Operands x{random.floats(count, -2, 2), random.floats(count, -2, 2), random.floats(count)};
        const Shape shape{tokens, setting.width()};
        std::vector<float> out(size_t(count), std::numeric_limits<float>::quiet_NaN());
        test::emulated_backend()->run(Attention{.q = view_of(x.q, shape),
                                                .k = view_of(x.k, shape),
                                                .v = view_of(x.v, shape),
                                                .spans = spans,
                                                .heads = setting.heads,
                                                .scale = setting.scale(),
                                                .mask = mask,
                                                .probability_grid = grid,
                                                .out = view_of(out, shape)});
        std::vector<Expected> expected;
        int64_t undecided = 0, codes = 0;
        for (const AttentionSpan& span : spans)
          for (int64_t row = 0; row < span.rows; ++row)
            for (int64_t head = 0; head < setting.heads; ++head, codes += span.rows)
              one_row(setting, x, span.first_row, span.rows, row, head, expected, undecided);
        ASSERT_TRUE(test::within_bounds(out, expected));
        EXPECT_LT(undecided, codes / 500) << "the test would show little";
      }
}

TEST(SimtRoundedAttention, RowsBeforeAnInfinityDoNotSeeIt) {
  const Setting setting{.mask = Mask::causal,
                        .grid = {.kind = ActivationGrid::Kind::affine, .bits = 8, .step = 1.0f / 255}};
  Random random(6);
  const int64_t rows = 30, odd_row = 13, odd_column = 17, count = rows * setting.width();
  const Operands x{random.floats(count, -2, 2), random.floats(count, -2, 2), random.floats(count)};
  const AttentionSpan span{0, int32_t(rows), 0, nullptr};
  const auto attend = [&](const Operands& of) {
    std::vector<float> out(size_t(count), std::numeric_limits<float>::quiet_NaN());
    const Shape shape{rows, setting.width()};
    test::emulated_backend()->run(Attention{.q = view_of(of.q, shape),
                                            .k = view_of(of.k, shape),
                                            .v = view_of(of.v, shape),
                                            .spans = std::span(&span, 1),
                                            .heads = setting.heads,
                                            .scale = setting.scale(),
                                            .mask = setting.mask,
                                            .probability_grid = setting.grid,
                                            .out = view_of(out, shape)});
    return out;
  };
  Operands odd = x;
  odd.v[size_t(odd_row * setting.width() + odd_column)] = std::numeric_limits<float>::infinity();
  const std::vector<float> expected = attend(x), got = attend(odd);
  for (int64_t i = 0; i < count; ++i)
    if (i / setting.width() < odd_row || i % setting.width() != odd_column)
      ASSERT_EQ(got[size_t(i)], expected[size_t(i)]) << i;
    else
      ASSERT_FALSE(std::isfinite(got[size_t(i)])) << i;
}

}  // namespace
}  // namespace ballast
