#include "kernels/ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

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

constexpr int64_t kBlock = 128;  ///< positions that the CPU backend joins at a time
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int64_t page_count(int64_t positions) {
  return (positions + kPagePositions - 1) / kPagePositions;
}

// One sequence's inputs at all its positions.
struct Sequence {
  int64_t length = 0;
  std::vector<float> q, k, v;
};

struct Setting {
  int64_t heads = 2, head_dim = 16;
  Mask mask = Mask::causal;
  DType cache = DType::f32;
  int64_t width() const { return heads * head_dim; }
  float scale() const { return 1 / std::sqrt(float(head_dim)); }
};

Sequence random_sequence(Random& random, const Setting& setting, int64_t length) {
  const int64_t count = length * setting.width();
  return {length, random.floats(count, -2, 2), random.floats(count, -2, 2), random.floats(count)};
}

// A cache for some sequences, its pages dealt out at random and every value NaN until it is written.
class Cache {
 public:
  Cache(const Setting& setting, const std::vector<Sequence>& sequences, uint64_t seed, float garbage = kNan)
      : setting_(setting) {
    int64_t total = 3;  // some pages stay unused
    for (const Sequence& sequence : sequences) total += page_count(sequence.length);
    Random random(seed);
    const std::vector<int32_t> order = random.permutation(total);
    auto next = order.begin();
    for (const Sequence& sequence : sequences) {
      pages_.emplace_back(next, next + page_count(sequence.length));
      next += page_count(sequence.length);
    }
    shape_ = {total, 2, setting.heads, cache_page_elements(setting.cache, setting.head_dim)};
    data_.assign(size_t(shape_.elements() * size_of(setting.cache)) / sizeof(float), garbage);
  }
  const int32_t* pages(size_t sequence) const { return pages_[sequence].data(); }
  OutputView view() { return OutputView(data_.data(), setting_.cache, shape_); }

  // What a position's keys (which = 0) or values (1) are in the cache, of one head.
  struct Stored {
    std::vector<int> codes;  ///< of a coded cache
    float scale = 1;
    std::vector<float> numbers;
  };
  Stored stored(size_t sequence, int64_t position, int which, int64_t head) const {
    const int64_t dim = setting_.head_dim, lane = position % kPagePositions;
    const int64_t page = pages_[sequence][size_t(position / kPagePositions)];
    const int64_t at = ((page * 2 + which) * setting_.heads + head) * shape_[3];
    Stored out;
    const auto* const codes = reinterpret_cast<const int8_t*>(data_.data()) + at;
    const bool coded = setting_.cache == DType::u8;
    if (coded) std::memcpy(&out.scale, codes + dim * kPagePositions + lane * 4, sizeof out.scale);
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t place = which == 0 ? d * kPagePositions + lane : lane * dim + d;
      if (coded) out.codes.push_back(codes[place]);
      out.numbers.push_back(coded ? out.scale * float(codes[place]) : data_[size_t(at + place)]);
    }
    return out;
  }
  // The sequence with keys and values as the cache has them.
  Sequence stored(size_t index, const Sequence& sequence) const {
    Sequence out = sequence;
    for (int64_t t = 0; t < sequence.length; ++t)
      for (int64_t head = 0; head < setting_.heads; ++head)
        for (int which : {0, 1}) {
          const std::vector<float> numbers = stored(index, t, which, head).numbers;
          std::copy(numbers.begin(), numbers.end(),
                    (which == 0 ? out.k : out.v).begin() + t * setting_.width() + head * setting_.head_dim);
        }
    return out;
  }

 private:
  Setting setting_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<float> data_;
  Shape shape_;
};

// Rows [past, past + rows) of a sequence, as one step of a batch processes them.
struct Chunk {
  size_t sequence = 0;
  int64_t past = 0, rows = 0;
};

// Runs one batch of chunks and writes each chunk's rows into outs[sequence].
void run_batch(Backend& backend, const Setting& setting, const std::vector<Sequence>& sequences, Cache& cache,
               const std::vector<Chunk>& chunks, std::vector<std::vector<float>>& outs) {
  const int64_t width = setting.width();
  std::vector<float> q, k, v;
  std::vector<AttentionSpan> spans;
  int64_t tokens = 0;
  for (const Chunk& chunk : chunks) {
    const Sequence& sequence = sequences[chunk.sequence];
    const int64_t begin = chunk.past * width, end = (chunk.past + chunk.rows) * width;
    q.insert(q.end(), sequence.q.begin() + begin, sequence.q.begin() + end);
    k.insert(k.end(), sequence.k.begin() + begin, sequence.k.begin() + end);
    v.insert(v.end(), sequence.v.begin() + begin, sequence.v.begin() + end);
    spans.push_back({int32_t(tokens), int32_t(chunk.rows), int32_t(chunk.past), cache.pages(chunk.sequence)});
    tokens += chunk.rows;
  }
  std::vector<float> out(size_t(tokens * width), kNan);
  backend.run(Attention{.q = view_of(q, {tokens, width}),
                        .k = view_of(k, {tokens, width}),
                        .v = view_of(v, {tokens, width}),
                        .cache = cache.view(),
                        .spans = spans,
                        .heads = setting.heads,
                        .scale = setting.scale(),
                        .mask = setting.mask,
                        .out = view_of(out, {tokens, width})});
  auto from = out.begin();
  for (const Chunk& chunk : chunks) {
    std::copy_n(from, chunk.rows * width, outs[chunk.sequence].begin() + chunk.past * width);
    from += chunk.rows * width;
  }
}

std::vector<std::vector<float>> empty_outs(const Setting& setting, const std::vector<Sequence>& sequences) {
  std::vector<std::vector<float>> outs;
  for (const Sequence& sequence : sequences)
    outs.emplace_back(size_t(sequence.length * setting.width()), kNan);
  return outs;
}

// Each sequence alone and at once; `stored` gets them with keys and values as the cache has them.
std::vector<std::vector<float>> run_alone(Backend& backend, const Setting& setting,
                                          const std::vector<Sequence>& sequences, float garbage = kNan,
                                          std::vector<Sequence>* stored = nullptr) {
  auto outs = empty_outs(setting, sequences);
  Cache cache(setting, sequences, 1, garbage);
  for (size_t s = 0; s < sequences.size(); ++s)
    run_batch(backend, setting, sequences, cache, {{s, 0, sequences[s].length}}, outs);
  if (stored)
    for (size_t s = 0; s < sequences.size(); ++s) stored->push_back(cache.stored(s, sequences[s]));
  return outs;
}

// One row of one head in f64. With es the error of a score (head_dim + 2 roundings of Σ|q·k|, one of the
// difference from the largest) a probability is off by the factor e^2es and a few roundings of the
// exponential; the sums over n positions and the final product add n + 4. Joining a block of positions to those
// before it rounds one more difference of scores, two exponentials (3 roundings each) and a product and a sum for
// each of values and total: 12. Scales of a coded cache round once more each, in scores and in weights.
void head_row(const Setting& setting, const Sequence& s, int64_t row, int64_t head,
              std::vector<Expected>& out) {
  const int64_t dim = setting.head_dim, width = setting.width();
  const int64_t count = setting.mask == Mask::causal ? row + 1 : s.length;
  const auto at = [&](const std::vector<float>& data, int64_t t, int64_t d) {
    return double(data[size_t(t * width + head * dim + d)]);
  };
  std::vector<double> weight(static_cast<size_t>(count));
  double top = -INFINITY, lowest = INFINITY, magnitude = 0, total = 0;
  for (int64_t j = 0; j < count; ++j) {
    double score = 0, absolute = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const double product = setting.scale() * at(s.q, row, d) * at(s.k, j, d);
      score += product;
      absolute += std::abs(product);
    }
    weight[size_t(j)] = score;
    top = std::max(top, score);
    lowest = std::min(lowest, score);
    magnitude = std::max(magnitude, absolute);
  }
  for (double& w : weight) total += (w = std::exp(w - top));
  const double joins = double((count - 1) / kBlock);
  const bool coded = setting.cache == DType::u8;
  const double score_error =
      double(dim + (coded ? 3 : 2)) * kRound32 * magnitude + (joins > 0 ? 2 : 1) * kRound32 * (top - lowest);
  const double relative =
      std::expm1(2 * score_error) + (2 * double(count) + (coded ? 13 : 12) + 12 * joins) * kRound32;
  for (int64_t d = 0; d < dim; ++d) {
    double value = 0, absolute = 0;
    for (int64_t j = 0; j < count; ++j) {
      value += weight[size_t(j)] / total * at(s.v, j, d);
      absolute += weight[size_t(j)] / total * std::abs(at(s.v, j, d));
    }
    out.push_back({value, relative * absolute});
  }
}

std::vector<Expected> reference(const Setting& setting, const Sequence& sequence) {
  std::vector<Expected> out;
  for (int64_t row = 0; row < sequence.length; ++row)
    for (int64_t head = 0; head < setting.heads; ++head) head_row(setting, sequence, row, head, out);
  return out;
}

constexpr DType kCaches[] = {DType::f32, DType::u8};

class AttentionOp : public IsaTest {};
// Without a cache the same sums are formed by other loops.
TEST_P(AttentionOp, WholeSequencesNeedNoCache) {
  for (const Mask mask : {Mask::full, Mask::causal})
    for (const int64_t head_dim : {16, 20, 3}) {
      const Setting setting{.heads = 3, .head_dim = head_dim, .mask = mask};
      Random random{uint64_t(head_dim)};
      std::vector<Sequence> sequences;
      for (const int64_t length : {1, 16, 37, 300})
        sequences.push_back(random_sequence(random, setting, length));
      std::vector<float> with_one_thread;
      for (const int threads : {1, 3}) {
        const auto backend = test::cpu_backend(GetParam(), threads);
        Sequence all;
        std::vector<AttentionSpan> spans;
        for (const Sequence& one : sequences) {
          spans.push_back({.first_row = int32_t(all.length), .rows = int32_t(one.length)});
          all.length += one.length;
          all.q.insert(all.q.end(), one.q.begin(), one.q.end());
          all.k.insert(all.k.end(), one.k.begin(), one.k.end());
          all.v.insert(all.v.end(), one.v.begin(), one.v.end());
        }
        const Shape shape{all.length, setting.width()};
        std::vector<float> out(size_t(shape.elements()), kNan);
        backend->run(Attention{.q = view_of(all.q, shape),
                               .k = view_of(all.k, shape),
                               .v = view_of(all.v, shape),
                               .spans = spans,
                               .heads = setting.heads,
                               .scale = setting.scale(),
                               .mask = mask,
                               .out = view_of(out, shape)});
        for (size_t i = 0; i < sequences.size(); ++i) {
          const auto begin = out.begin() + spans[i].first_row * setting.width();
          const std::vector<float> one(begin, begin + spans[i].rows * setting.width());
          EXPECT_TRUE(within_bounds(one, reference(setting, sequences[i]))) << "head_dim " << head_dim;
        }
        if (with_one_thread.empty()) with_one_thread = out;
        EXPECT_TRUE(same_bits(out, with_one_thread))
            << "head_dim " << head_dim << ", " << threads << " threads";
      }
    }
}

BALLAST_FOR_ALL_ISAS(AttentionOp);

TEST_P(AttentionOp, MatchesF64AndTheScalarBits) {
  const auto two = test::cpu_backend(GetParam(), 2), scalar_backend = test::cpu_backend("scalar");
  for (int64_t head_dim : {1, 12, 16, 20, 64, 80})
    for (Mask mask : {Mask::causal, Mask::full})
      for (DType type : kCaches) {
        const Setting setting{.heads = 3, .head_dim = head_dim, .mask = mask, .cache = type};
        Random random{uint64_t(head_dim)};
        std::vector<Sequence> sequences, stored;
        for (int64_t length : {1, 3, 16, 17, 50, int(kBlock) + 1, scalar() ? 2 : 2 * int(kBlock) + 45})
          sequences.push_back(random_sequence(random, setting, length));
        const auto outs = run_alone(*backend_, setting, sequences, kNan, &stored);
        const auto outs_two = run_alone(*two, setting, sequences);
        const auto outs_scalar = run_alone(*scalar_backend, setting, sequences);
        for (size_t s = 0; s < sequences.size(); ++s) {
          SCOPED_TRACE(str("head_dim ", head_dim, ", mask ", int(mask), ", length ", sequences[s].length,
                           ", ", name_of(type)));
          ASSERT_TRUE(within_bounds(outs[s], reference(setting, stored[s])));
          ASSERT_TRUE(same_bits(outs_two[s], outs[s])) << "two threads";
          ASSERT_TRUE(same_bits(outs_scalar[s], outs[s])) << "scalar";
        }
      }
}

// The nearest codes of every vector of keys and values, one scale each.
TEST_P(AttentionOp, CodedCacheKeepsTheNearestCodes) {
  const Setting setting{.heads = 2, .head_dim = 20, .cache = DType::u8};
  Random random(3);
  Sequence sequence = random_sequence(random, setting, 37);
  // Positions 0 to 5, head 1: zeros, a number too small to count, one that just does, a tie, NaN, infinity.
  const auto keys = [&](int64_t t) { return sequence.k.begin() + t * setting.width() + setting.head_dim; };
  for (int64_t t = 0; t < 6; ++t) std::fill(keys(t), keys(t) + setting.head_dim, 0.0f);
  *keys(1) = 0x1p-101f;
  *keys(2) = 0x1p-100f;
  keys(3)[0] = -127, keys(3)[1] = 2.5f, keys(3)[2] = -3.5f;
  keys(4)[7] = kNan, keys(5)[19] = -std::numeric_limits<float>::infinity();
  Cache cache(setting, {sequence}, 2);
  auto outs = empty_outs(setting, {sequence});
  for (const auto& [past, rows] : {std::pair(0, 3), std::pair(3, 33), std::pair(36, 1)})
    run_batch(*backend_, setting, {sequence}, cache, {{0, past, rows}}, outs);
  for (int64_t t = 0; t < sequence.length; ++t)
    for (int64_t head = 0; head < setting.heads; ++head)
      for (int which : {0, 1}) {
        SCOPED_TRACE(str("position ", t, ", head ", head, which == 0 ? ", keys" : ", values"));
        const Cache::Stored stored = cache.stored(0, t, which, head);
        const auto x =
            (which == 0 ? sequence.k : sequence.v).begin() + t * setting.width() + head * setting.head_dim;
        if (which == 0 && head == 1 && t < 6 && t != 2 && t != 3) {
          EXPECT_EQ(stored.codes, std::vector<int>(20, 0));
          EXPECT_TRUE(t < 2 ? stored.scale == 0 : std::isnan(stored.scale)) << stored.scale;
          continue;
        }
        float largest = 0;
        for (int64_t d = 0; d < setting.head_dim; ++d) largest = std::max(largest, std::abs(x[d]));
        EXPECT_EQ(stored.scale, largest / 127);
        for (int64_t d = 0; d < setting.head_dim; ++d) {
          EXPECT_LE(std::abs(stored.codes[size_t(d)]), 127);
          EXPECT_LE(std::abs(x[d] / stored.scale - float(stored.codes[size_t(d)])), 0.5f + 1e-4f);
          EXPECT_TRUE(std::abs(x[d]) < largest || std::abs(stored.codes[size_t(d)]) == 127);
        }
      }
  EXPECT_EQ(cache.stored(0, 3, 0, 1).codes[1], 2) << "a tie goes to the even code";
  EXPECT_EQ(cache.stored(0, 3, 0, 1).codes[2], -4);
}

// A row is computed together with later ones, whose values may be anything.
TEST_P(AttentionOp, InfiniteValuesReachNoEarlierRowOfACodedCache) {
  const Setting setting{.heads = 1, .head_dim = 16, .cache = DType::u8};
  Random random(12);
  std::vector<Sequence> sequences{random_sequence(random, setting, 24)};
  const auto finite = run_alone(*backend_, setting, sequences);
  sequences[0].v.back() = std::numeric_limits<float>::infinity();
  const auto outs = run_alone(*backend_, setting, sequences);
  for (size_t i = 0; i < 24 * 16; ++i)
    ASSERT_TRUE(i < 23 * 16 ? outs[0][i] == finite[0][i] : std::isnan(outs[0][i])) << i;
}

TEST_P(AttentionOp, AnyChunkingGivesTheSameBits) {
  constexpr int64_t kLength = 2 * kBlock + 35;
  for (const auto& [head_dim, type] :
       {std::pair(12, DType::f32), std::pair(64, DType::f32), std::pair(64, DType::u8)}) {
    const Setting setting{.heads = 2, .head_dim = head_dim, .cache = type};
    Random random(5);
    const std::vector<Sequence> sequences{random_sequence(random, setting, kLength)};
    const auto whole = run_alone(*backend_, setting, sequences);
    std::vector<std::vector<int64_t>> cuts;
    for (int64_t size : {1, 3, 7, 16, 17, 64, 130}) {
      cuts.emplace_back();
      for (int64_t past = 0; past < kLength; past += size)
        cuts.back().push_back(std::min(size, kLength - past));
    }
    cuts.push_back({33, 1, 1, 20, 15, 57, 1, 1, kLength - 129});
    for (const auto& cut : cuts) {
      auto outs = empty_outs(setting, sequences);
      Cache cache(setting, sequences, 2);
      int64_t past = 0;
      for (int64_t rows : cut) {
        run_batch(*backend_, setting, sequences, cache, {{0, past, rows}}, outs);
        past += rows;
      }
      ASSERT_TRUE(same_bits(outs[0], whole[0])) << "first chunk of " << cut[0] << ", head_dim " << head_dim;
    }
  }
}

// Prefill chunks and single decode rows of several sequences in the same batches.
TEST_P(AttentionOp, MixedBatchesGiveTheBitsOfEachSequenceAlone) {
  for (const auto& [threads, type] :
       {std::pair(1, DType::f32), std::pair(2, DType::f32), std::pair(5, DType::f32), std::pair(1, DType::u8),
        std::pair(3, DType::u8)}) {
    const auto backend = test::cpu_backend(GetParam(), threads);
    const Setting setting{.heads = 4, .head_dim = 20, .cache = type};
    Random random(6);
    std::vector<Sequence> sequences;
    for (int64_t length : {40, 19, 33}) sequences.push_back(random_sequence(random, setting, length));
    const auto alone = run_alone(*backend, setting, sequences);
    auto outs = empty_outs(setting, sequences);
    Cache cache(setting, sequences, 3);
    run_batch(*backend, setting, sequences, cache, {{2, 0, 30}, {0, 0, 15}}, outs);
    run_batch(*backend, setting, sequences, cache, {{0, 15, 1}, {1, 0, 19}, {2, 30, 1}}, outs);
    run_batch(*backend, setting, sequences, cache, {{2, 31, 1}, {0, 16, 24}}, outs);
    run_batch(*backend, setting, sequences, cache, {{2, 32, 1}}, outs);
    for (size_t s = 0; s < sequences.size(); ++s)
      ASSERT_TRUE(same_bits(outs[s], alone[s])) << "sequence " << s << ", " << threads << " threads";
  }
}

// A single row of one head, its blocks of positions shared by up to eight threads, and of sequences of which only some
// have more than one block.
TEST_P(AttentionOp, SharedBlocksOfPositionsGiveTheSameBits) {
  for (const auto& [head_dim, type] :
       {std::pair(20, DType::f32), std::pair(64, DType::f32), std::pair(64, DType::u8)}) {
    const Setting setting{.heads = 1, .head_dim = head_dim, .cache = type};
    Random random(9);
    std::vector<Sequence> sequences;
    for (int64_t length : {int64_t(3), kBlock, kBlock + 1, 5 * kBlock - 7})
      sequences.push_back(random_sequence(random, setting, length));
    const auto alone = run_alone(*backend_, setting, sequences);
    for (int threads : {1, 2, 8}) {
      const auto backend = test::cpu_backend(GetParam(), threads);
      auto outs = empty_outs(setting, sequences);
      Cache cache(setting, sequences, 3);
      std::vector<Chunk> last;
      for (size_t s = 0; s < sequences.size(); ++s) {
        const int64_t past = sequences[s].length - 1;
        run_batch(*backend, setting, sequences, cache, {{s, 0, past}}, outs);
        last.push_back({s, past, 1});
      }
      auto one_by_one = outs;
      run_batch(*backend, setting, sequences, cache, last, outs);
      for (size_t s = 0; s < sequences.size(); ++s) {
        ASSERT_TRUE(same_bits(outs[s], alone[s])) << "sequence " << s << ", " << threads << " threads";
        run_batch(*backend, setting, sequences, cache, {last[s]}, one_by_one);
        ASSERT_TRUE(same_bits(one_by_one[s], alone[s])) << "sequence " << s << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(AttentionOp, ImagesInOneBatchDoNotSeeEachOther) {
  const Setting setting{.heads = 2, .head_dim = 16, .mask = Mask::full};
  Random random(7);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(random_sequence(random, setting, 21));
  const auto alone = run_alone(*backend_, setting, sequences);
  auto outs = empty_outs(setting, sequences);
  Cache cache(setting, sequences, 4);
  run_batch(*backend_, setting, sequences, cache, {{0, 0, 21}, {1, 0, 21}, {2, 0, 21}}, outs);
  for (size_t s = 0; s < sequences.size(); ++s) ASSERT_TRUE(same_bits(outs[s], alone[s])) << "image " << s;
}

// Every case here starts from a cache of NaN; other left-overs must not matter either.
TEST_P(AttentionOp, UnusedPositionsOfAPageHaveNoEffect) {
  for (Mask mask : {Mask::causal, Mask::full})
    for (DType type : kCaches) {
      const Setting setting{.heads = 2, .head_dim = 12, .mask = mask, .cache = type};
      Random random(8);
      const std::vector<Sequence> sequences{random_sequence(random, setting, 21)};
      const auto with_nan = run_alone(*backend_, setting, sequences);
      for (float value : with_nan[0]) ASSERT_TRUE(std::isfinite(value));
      const float infinity = std::numeric_limits<float>::infinity();
      for (float garbage : {0.0f, 3e38f, -3e38f, 1e4f, infinity, -infinity})
        ASSERT_TRUE(same_bits(run_alone(*backend_, setting, sequences, garbage)[0], with_nan[0])) << garbage;
    }
}

// Not even a share too small to change a sum: what a row may not see is multiplied by exactly zero.
TEST_P(AttentionOp, LaterPositionsHaveNoEffectOnEarlierRows) {
  constexpr int64_t kLength = 24;  // the last four rows are attended together
  const Setting setting{.heads = 1, .head_dim = 16};
  Random random(11);
  std::vector<Sequence> sequences{random_sequence(random, setting, kLength)};
  sequences[0].v.assign(kLength * 16, 0);
  std::fill(sequences[0].v.end() - 16, sequences[0].v.end(), 3e38f);
  const auto outs = run_alone(*backend_, setting, sequences);
  for (int64_t i = 0; i < kLength * 16; ++i) {
    if (i < (kLength - 1) * 16) {
      ASSERT_EQ(outs[0][size_t(i)], 0) << "row " << i / 16;
    } else {
      ASSERT_GT(outs[0][size_t(i)], 0);
    }
  }
}

TEST_P(AttentionOp, LargeScoresDoNotOverflow) {
  const Setting setting{.heads = 1, .head_dim = 4, .mask = Mask::full};
  Sequence sequence{3, std::vector<float>(12, 100), std::vector<float>(12, -100), {}};
  for (int i = 4; i < 8; ++i) sequence.k[size_t(i)] = 100;  // position 1 takes everything
  for (int i = 0; i < 12; ++i) sequence.v.push_back(float(i));
  const auto outs = run_alone(*backend_, setting, {sequence});
  for (int i = 0; i < 12; ++i) EXPECT_EQ(outs[0][size_t(i)], float(4 + i % 4));
}

TEST_P(AttentionOp, ViewsMayBeColumnsOfOneMatrix) {
  const Setting setting{.heads = 2, .head_dim = 12};
  constexpr int64_t kTokens = 18, kWidth = 24;
  Random random(9);
  const std::vector<Sequence> sequences{random_sequence(random, setting, kTokens)};
  const auto expected = run_alone(*backend_, setting, sequences);
  std::vector<float> qkv;
  for (int64_t t = 0; t < kTokens; ++t)
    for (const std::vector<float>* part : {&sequences[0].q, &sequences[0].k, &sequences[0].v})
      qkv.insert(qkv.end(), part->begin() + t * kWidth, part->begin() + (t + 1) * kWidth);
  Cache cache(setting, sequences, 5);
  std::vector<float> out(kTokens * 30, -1);
  const AttentionSpan span{0, kTokens, 0, cache.pages(0)};
  Attention op{.q = TensorView(qkv.data(), DType::f32, {kTokens, kWidth}),
               .k = TensorView(qkv.data() + kWidth, DType::f32, {kTokens, kWidth}),
               .v = TensorView(qkv.data() + 2 * kWidth, DType::f32, {kTokens, kWidth}),
               .cache = cache.view(),
               .spans = {&span, 1},
               .heads = 2,
               .scale = setting.scale(),
               .out = OutputView(out.data(), DType::f32, {kTokens, kWidth})};
  op.q.strides[0] = op.k.strides[0] = op.v.strides[0] = 3 * kWidth;
  op.out.strides[0] = 30;
  backend_->run(op);
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t i = 0; i < 30; ++i)
      ASSERT_EQ(out[size_t(t * 30 + i)], i < kWidth ? expected[0][size_t(t * kWidth + i)] : -1);
}

TEST_P(AttentionOp, BrokenContractsAreNamed) {
  const Setting setting{.heads = 2, .head_dim = 12};
  Random random(10);
  const std::vector<Sequence> sequences{random_sequence(random, setting, 4)};
  Cache cache(setting, sequences, 6);
  std::vector<float> out(4 * 24);
  const TensorView rows = view_of(sequences[0].q, {4, 24});
  const auto message = [&](std::vector<AttentionSpan> spans, int64_t heads) {
    const Attention op{.q = rows,
                       .k = rows,
                       .v = rows,
                       .cache = cache.view(),
                       .spans = spans,
                       .heads = heads,
                       .out = view_of(out, {4, 24})};
    return test::message_of<ContractError>([&] { backend_->run(op); });
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(message({{0, 3, 0, cache.pages(0)}}, 2), "attention: spans cover 3 of 4 rows"));
  EXPECT_TRUE(
      has(message({{0, 2, 0, cache.pages(0)}, {3, 1, 0, cache.pages(0)}}, 2), "spans must tile the rows"));
  EXPECT_TRUE(has(message({{0, 4, 0, cache.pages(0)}}, 5), "attention: 5 heads do not divide 24"));
  EXPECT_TRUE(has(message({{0, 4, 0, cache.pages(0)}}, 3), "attention: heads is 2 in cache but 3 in heads"));
  Attention op{
      .q = rows, .k = rows, .v = rows, .cache = cache.view(), .heads = 2, .out = view_of(out, {4, 24})};
  op.cache.dtype = DType::u8;  // a page of codes has room for scales
  EXPECT_TRUE(has(test::message_of<ContractError>([&] { backend_->run(op); }),
                  "attention: page is 192 in cache but 256"));
}

}  // namespace
}  // namespace ballast
