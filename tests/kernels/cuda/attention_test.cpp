// Attention of the CUDA backend, on the emulator, against f64.
#include "kernels/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/simt/emulated_backend.h"

namespace ballast {
namespace {

using test::emulated_backend;
using test::Expected;
using test::Random;
using test::view_of;
using test::within_bounds;

struct Setting {
  int64_t heads = 2, head_dim = 16;
  Mask mask = Mask::causal;
  DType cache = DType::f32;
  int64_t width() const { return heads * head_dim; }
  float scale() const { return 1 / std::sqrt(float(head_dim)); }
};

struct Sequence {
  int64_t length = 0;
  std::vector<float> q, k, v;
};

Sequence random_sequence(Random& random, const Setting& setting, int64_t length) {
  const int64_t count = length * setting.width();
  return {length, random.floats(count, -2, 2), random.floats(count, -2, 2), random.floats(count)};
}

// Scores are off by head_dim roundings of what they sum, or by `rounding` of q and k each; softmax turns an absolute error e
// of the scores into a relative one of 2e, and probabilities and values are rounded again. Scales of a coded cache add one
// rounding each, in scores and in weights.
Expected one_value(const Setting& setting, const Sequence& sequence, int64_t row, int64_t head, int64_t d,
                   double rounding) {
  const int64_t width = setting.width(), at = head * setting.head_dim;
  const int64_t visible = setting.mask == Mask::causal ? row + 1 : sequence.length;
  std::vector<double> scores(static_cast<size_t>(visible));
  double top = -INFINITY, error = 0;
  for (int64_t j = 0; j < visible; ++j) {
    double sum = 0, size = 0;
    for (int64_t i = 0; i < setting.head_dim; ++i) {
      const double product =
          double(sequence.q[size_t(row * width + at + i)]) * sequence.k[size_t(j * width + at + i)];
      sum += product;
      size += std::abs(product);
    }
    scores[size_t(j)] = setting.scale() * sum;
    top = std::max(top, scores[size_t(j)]);
    error = std::max(
        error, setting.scale() * size * (double(setting.head_dim + 4) * test::kRound32 + 2.1 * rounding));
  }
  double weights = 0, value = 0, size = 0;
  for (int64_t j = 0; j < visible; ++j) {
    const double weight = std::exp(scores[size_t(j)] - top), v = sequence.v[size_t(j * width + at + d)];
    weights += weight;
    value += weight * v;
    size += weight * std::abs(v);
  }
  const double relative = 2.2 * error + 4 * rounding + double(visible + 21) * test::kRound32;
  return {value / weights, relative * size / weights + 1e-7};
}

void expect_near(const Setting& setting, const Sequence& sequence, const std::vector<float>& out,
                 double rounding) {
  std::vector<Expected> expected;
  for (int64_t row = 0; row < sequence.length; ++row)
    for (int64_t head = 0; head < setting.heads; ++head)
      for (int64_t d = 0; d < setting.head_dim; ++d)
        expected.push_back(one_value(setting, sequence, row, head, d, rounding));
  ASSERT_TRUE(within_bounds(out, expected));
}

struct Chunk {
  size_t sequence;
  int64_t past, rows;
};

struct Outcome {
  std::vector<std::vector<float>> outs;  ///< of each sequence
  std::vector<Sequence> stored;          ///< the sequences with keys and values as the cache has them
  std::vector<float> cache;              ///< its memory
};

// What the cache has in place of a sequence's keys and values.
Sequence read_back(const Setting& setting, const Sequence& sequence, const std::vector<int32_t>& pages,
                   const std::vector<float>& cache) {
  Sequence out = sequence;
  const int64_t dim = setting.head_dim, elements = cache_page_elements(setting.cache, dim);
  for (int64_t t = 0; t < sequence.length; ++t)
    for (int64_t head = 0; head < setting.heads; ++head)
      for (const int which : {0, 1}) {
        const int64_t page = pages[size_t(t / kPagePositions)], lane = t % kPagePositions;
        const int64_t at = ((page * 2 + which) * setting.heads + head) * elements;
        const auto* const codes = reinterpret_cast<const int8_t*>(cache.data()) + at;
        float scale = 1;
        if (setting.cache == DType::u8)
          std::memcpy(&scale, codes + dim * kPagePositions + lane * 4, sizeof scale);
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t place = which == 0 ? d * kPagePositions + lane : lane * dim + d;
          (which == 0 ? out.k : out.v)[size_t(t * setting.width() + head * dim + d)] =
              setting.cache == DType::u8 ? scale * float(codes[place]) : cache[size_t(at + place)];
        }
      }
  return out;
}

// Steps of a batch over a cache whose pages are dealt out at random and hold NaNs.
Outcome run_steps_on(Backend& backend, const Setting& setting, const std::vector<Sequence>& sequences,
                     const std::vector<std::vector<Chunk>>& steps) {
  int64_t pages = 2;
  std::vector<std::vector<int32_t>> tables;
  for (const Sequence& sequence : sequences) pages += (sequence.length + kPagePositions - 1) / kPagePositions;
  Random random(7);
  const std::vector<int32_t> order = random.permutation(pages);
  auto next = order.begin();
  for (const Sequence& sequence : sequences) {
    const int64_t count = (sequence.length + kPagePositions - 1) / kPagePositions;
    tables.emplace_back(next, next + count);
    next += count;
  }
  const Shape shape{pages, 2, setting.heads, cache_page_elements(setting.cache, setting.head_dim)};
  std::vector<float> cache(size_t(shape.elements() * size_of(setting.cache) / 4),
                           std::numeric_limits<float>::quiet_NaN());
  std::vector<std::vector<float>> outs;
  for (const Sequence& sequence : sequences) outs.emplace_back(sequence.q.size(), 1e9f);
  const int64_t width = setting.width();
  for (const auto& step : steps) {
    std::vector<float> q, k, v;
    std::vector<AttentionSpan> spans;
    int64_t tokens = 0;
    for (const Chunk& chunk : step) {
      const Sequence& from = sequences[chunk.sequence];
      const int64_t begin = chunk.past * width, end = (chunk.past + chunk.rows) * width;
      q.insert(q.end(), from.q.begin() + begin, from.q.begin() + end);
      k.insert(k.end(), from.k.begin() + begin, from.k.begin() + end);
      v.insert(v.end(), from.v.begin() + begin, from.v.begin() + end);
      spans.push_back(
          {int32_t(tokens), int32_t(chunk.rows), int32_t(chunk.past), tables[chunk.sequence].data()});
      tokens += chunk.rows;
    }
    std::vector<float> out(size_t(tokens * width), std::numeric_limits<float>::quiet_NaN());
    backend.run(Attention{.q = view_of(q, {tokens, width}),
                          .k = view_of(k, {tokens, width}),
                          .v = view_of(v, {tokens, width}),
                          .cache = OutputView(cache.data(), setting.cache, shape),
                          .spans = spans,
                          .heads = setting.heads,
                          .scale = setting.scale(),
                          .mask = setting.mask,
                          .out = view_of(out, {tokens, width})});
    auto from = out.begin();
    for (const Chunk& chunk : step) {
      std::copy_n(from, chunk.rows * width, outs[chunk.sequence].begin() + chunk.past * width);
      from += chunk.rows * width;
    }
  }
  std::vector<Sequence> stored;
  for (size_t i = 0; i < sequences.size(); ++i)
    stored.push_back(read_back(setting, sequences[i], tables[i], cache));
  return {std::move(outs), std::move(stored), std::move(cache)};
}

std::vector<std::vector<float>> run_steps(const Setting& setting, const std::vector<Sequence>& sequences,
                                          const std::vector<std::vector<Chunk>>& steps) {
  return run_steps_on(*emulated_backend(), setting, sequences, steps).outs;
}

TEST(SimtAttention, SingleRowsOverManyBlocksOfPositions) {
  for (const int64_t head_dim : {5, 64, 130}) {
    const Setting setting{.heads = 2, .head_dim = head_dim};
    Random random{uint64_t(head_dim)};
    const std::vector<Sequence> sequences{random_sequence(random, setting, 300),
                                          random_sequence(random, setting, 1),
                                          random_sequence(random, setting, 129)};
    std::vector<std::vector<Chunk>> steps{{{0, 0, 13}, {2, 0, 9}}};
    // The rest in chunks of up to 15 rows, sequences beside each other.
    for (int64_t past = 13; past < 300; past += 15) {
      steps.push_back({{0, past, std::min<int64_t>(15, 300 - past)}});
      const int64_t other = 9 + (past - 13) / 15 * 6;
      if (other < 129) steps.back().push_back({2, other, std::min<int64_t>(6, 129 - other)});
    }
    for (int64_t other = 9 + 20 * 6; other < 129; other += 6)
      steps.push_back({{2, other, std::min<int64_t>(6, 129 - other)}});
    steps.push_back({{1, 0, 1}});
    const auto outs = run_steps(setting, sequences, steps);
    for (size_t i = 0; i < sequences.size(); ++i) expect_near(setting, sequences[i], outs[i], 0);
  }
}

// Spans of 16 rows and more go to the tensor cores, shorter ones beside them do not; both read what the other has cached.
TEST(SimtAttention, ManyRowsOnTheTensorCores) {
  for (const int64_t head_dim : {64, 80, 128}) {
    const Setting setting{.heads = 2, .head_dim = head_dim};
    Random random{uint64_t(head_dim)};
    const std::vector<Sequence> sequences{random_sequence(random, setting, 150),
                                          random_sequence(random, setting, 21)};
    for (const auto& steps : std::vector<std::vector<std::vector<Chunk>>>{
             {{{0, 0, 150}, {1, 0, 21}}},
             {{{1, 0, 16}, {0, 0, 5}}, {{0, 5, 80}}, {{0, 85, 65}, {1, 16, 5}}}}) {
      const auto outs = run_steps(setting, sequences, steps);
      for (size_t i = 0; i < sequences.size(); ++i)
        ASSERT_NO_FATAL_FAILURE(expect_near(setting, sequences[i], outs[i], 0x1p-11)) << head_dim;
    }
  }
}

// Codes, scales and what was in the cache before: the same bytes as on the CPU. Outputs against f64 on what is in the cache,
// single rows and tensor cores beside each other.
TEST(SimtAttention, ACacheOfCodesIsThatOfTheCpu) {
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const auto cuda = emulated_backend();
  for (const int64_t head_dim : {5, 64, 80, 130}) {
    SCOPED_TRACE(head_dim);
    const Setting setting{.heads = 3, .head_dim = head_dim, .cache = DType::u8};
    Random random{uint64_t(head_dim)};
    const std::vector<Sequence> sequences{random_sequence(random, setting, 150),
                                          random_sequence(random, setting, 21)};
    const std::vector<std::vector<Chunk>> steps{
        {{1, 0, 16}, {0, 0, 5}}, {{0, 5, 80}, {1, 16, 3}},  {{0, 85, 15}, {1, 19, 1}}, {{0, 100, 33}},
        {{0, 133, 2}},           {{1, 20, 1}, {0, 135, 15}}};
    const Outcome here = run_steps_on(*cpu, setting, sequences, steps);
    const Outcome there = run_steps_on(*cuda, setting, sequences, steps);
    ASSERT_TRUE(test::same_bits(there.cache, here.cache));
    const bool tiles = head_dim == 64 || head_dim == 80;
    for (size_t i = 0; i < sequences.size(); ++i)
      ASSERT_NO_FATAL_FAILURE(expect_near(setting, there.stored[i], there.outs[i], tiles ? 0x1p-11 : 0));
  }
}

// Rows of a long past, whose scores and values differ in size from position to position.
TEST(SimtAttention, SingleRowsOverManyBlocksOfCodes) {
  for (const int64_t head_dim : {20, 64, 130}) {
    const Setting setting{.heads = 2, .head_dim = head_dim, .cache = DType::u8};
    Random random{uint64_t(head_dim)};
    std::vector<Sequence> sequences{random_sequence(random, setting, 300),
                                    random_sequence(random, setting, 129)};
    for (Sequence& sequence : sequences)
      for (size_t i = 0; i < sequence.v.size(); ++i)
        sequence.v[i] *= float(1 + i / size_t(setting.head_dim) % 7);
    std::vector<std::vector<Chunk>> steps;
    for (int64_t past = 0; past < 300; past += 15) {
      steps.push_back({{0, past, std::min<int64_t>(15, 300 - past)}});
      if (past < 129) steps.back().push_back({1, past, std::min<int64_t>(15, 129 - past)});
    }
    const Outcome outcome = run_steps_on(*emulated_backend(), setting, sequences, steps);
    for (size_t i = 0; i < sequences.size(); ++i)
      ASSERT_NO_FATAL_FAILURE(expect_near(setting, outcome.stored[i], outcome.outs[i], 0)) << head_dim;
  }
}

// Zeros, a number too small to count, one that just does, ties, NaNs and infinities.
TEST(SimtAttention, UnusualNumbersHaveTheCodesOfTheCpu) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                  kInfinite = std::numeric_limits<float>::infinity();
  const Setting setting{.heads = 2, .head_dim = 20, .cache = DType::u8};
  Random random(3);
  Sequence sequence = random_sequence(random, setting, 37);
  for (std::vector<float>* side : {&sequence.k, &sequence.v}) {
    const auto at = [&](int64_t t) { return side->begin() + t * setting.width() + setting.head_dim; };
    for (int64_t t = 0; t < 8; ++t) std::fill(at(t), at(t) + setting.head_dim, 0.0f);
    at(1)[3] = -0x1p-101f, at(2)[0] = 0x1p-100f, at(3)[5] = std::nextafter(0x1p-100f, 0.0f);
    at(4)[0] = -127, at(4)[1] = 2.5f, at(4)[2] = -3.5f;
    at(5)[7] = kNan, at(6)[19] = -kInfinite, at(7)[1] = std::numeric_limits<float>::max();
  }
  const std::vector<std::vector<Chunk>> steps{{{0, 0, 3}}, {{0, 3, 33}}, {{0, 36, 1}}};
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const Outcome here = run_steps_on(*cpu, setting, {sequence}, steps);
  const Outcome there = run_steps_on(*emulated_backend(), setting, {sequence}, steps);
  ASSERT_TRUE(test::same_bits(there.cache, here.cache));
  // A row that sees a NaN is one, in the head that has it; the other head sees none.
  for (int64_t row = 0; row < sequence.length; ++row)
    for (int64_t d = 0; d < setting.width(); ++d)
      ASSERT_EQ(std::isnan(there.outs[0][size_t(row * setting.width() + d)]), row >= 5 && d >= 20)
          << row << ", " << d;
}

// On the tensor cores too: what no number of 16 bits is at one position changes no row before it, and is what it is in those
// that see it.
TEST(SimtAttention, RowsBeforeAnInfinityDoNotSeeIt) {
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  const Setting setting{.heads = 2, .head_dim = 64};
  Random random(9);
  Sequence sequence = random_sequence(random, setting, 150);
  struct Odd {
    int64_t position, column;
    float value;
  };
  const Odd odds[] = {{20, 3, kInfinite},
                      {63, 4, -kInfinite},
                      {64, 70, std::numeric_limits<float>::quiet_NaN()},
                      {149, 127, 1e6f}};
  for (const auto& [position, column, value] : odds) {
    sequence.v[size_t(position * setting.width() + column)] = value;
    sequence.k[size_t(position * setting.width() + column)] = std::abs(value) > 1e5f ? 100 : 1;
  }
  sequence.k[size_t(130 * setting.width())] = -kInfinite;  // rows from 130 on, in the first head
  for (const auto& steps : std::vector<std::vector<std::vector<Chunk>>>{
           {{{0, 0, 150}}}, {{{0, 0, 5}}, {{0, 5, 80}}, {{0, 85, 65}}}}) {
    const std::vector<float> out = run_steps(setting, {sequence}, steps)[0];
    for (int64_t row = 0; row < sequence.length; ++row)
      for (int64_t column = 0; column < setting.width(); ++column) {
        SCOPED_TRACE(str("row ", row, ", column ", column));
        const float got = out[size_t(row * setting.width() + column)];
        const Odd* odd = std::find_if(std::begin(odds), std::end(odds),
                                      [&](const Odd& one) { return one.column == column; });
        if (row >= 130 && column < 64) continue;
        if (odd == std::end(odds) || row < odd->position) {
          const Expected expected = one_value(setting, sequence, row, column / 64, column % 64, 0x1p-11);
          ASSERT_LE(std::abs(got - expected.value), expected.bound);
        } else if (std::isnan(odd->value)) {
          ASSERT_TRUE(std::isnan(got));
        } else {
          ASSERT_TRUE(std::isinf(got) && std::signbit(got) == std::signbit(odd->value)) << got;
        }
      }
  }
}

TEST(SimtAttention, RowsDoNotDependOnTheBatchOrTheOrderOfBlocks) {
  for (const DType cache : {DType::f32, DType::u8}) {
    const Setting setting{.heads = 3, .head_dim = 16, .cache = cache};
    Random random(3);
    const std::vector<Sequence> sequences{random_sequence(random, setting, 261),
                                          random_sequence(random, setting, 40)};
    std::vector<std::vector<Chunk>> by_one, by_ten;
    for (int64_t past = 0; past < 261; past += 9)
      by_ten.push_back({{0, past, std::min<int64_t>(9, 261 - past)}});
    for (int64_t past = 0; past < 261; ++past) {
      by_one.push_back({{0, past, 1}});
      if (past < 40) by_one.back().push_back({1, past, 1});
    }
    const auto first = run_steps(setting, {sequences[0], sequences[1]}, by_one);
    simt::set_seed(5);
    const auto second = run_steps(setting, {sequences[0], sequences[1]}, by_ten);
    simt::set_seed(1);
    EXPECT_TRUE(test::same_bits(first[0], second[0]));
  }
}

class SimtImageAttention : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(, SimtImageAttention, testing::Values(12, 64));

TEST_P(SimtImageAttention, ImagesSeeAllOfThemselves) {
  const Setting setting{.heads = 2, .head_dim = GetParam(), .mask = Mask::full};
  Random random(4);
  const Sequence one = random_sequence(random, setting, 150), other = random_sequence(random, setting, 7);
  Sequence both{157, one.q, one.k, one.v};
  for (const auto& [to, from] : {std::pair(&both.q, &other.q), {&both.k, &other.k}, {&both.v, &other.v}})
    to->insert(to->end(), from->begin(), from->end());
  const AttentionSpan spans[] = {{0, 150, 0, nullptr}, {150, 7, 0, nullptr}};
  std::vector<float> out(both.q.size(), std::numeric_limits<float>::quiet_NaN());
  const auto backend = emulated_backend();
  backend->run(Attention{.q = view_of(both.q, {157, setting.width()}),
                         .k = view_of(both.k, {157, setting.width()}),
                         .v = view_of(both.v, {157, setting.width()}),
                         .spans = spans,
                         .heads = setting.heads,
                         .scale = setting.scale(),
                         .mask = setting.mask,
                         .out = view_of(out, {157, setting.width()})});
  const auto split = out.begin() + 150 * setting.width();
  expect_near(setting, one, {out.begin(), split}, GetParam() == 64 ? 0x1p-11 : 0);
  expect_near(setting, other, {split, out.end()}, 0);
}

}  // namespace
}  // namespace ballast
