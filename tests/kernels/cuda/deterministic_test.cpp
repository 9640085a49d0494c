// --deterministic, on the emulator: the same bits in any batch and from any chunks. Each case crosses a number of tokens at which
// another kernel is chosen otherwise, and shows that it does.
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "engine/runtime/runner.h"
#include "models/registry.h"
#include "tests/support/rounded_model.h"
#include "tests/support/simt/emulated_backend.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

using test::emulated_backend;
using test::Random;
using test::same_bits;
using test::view_of;

// The first tokens' outputs alone and within `many` tokens.
template <class Matrix>
bool same_in_a_batch(const Matrix& matrix, int64_t out, int64_t in, int64_t few, int64_t many,
                     bool deterministic) {
  const auto backend = emulated_backend("f32", deterministic);
  const auto weight = test::packed(*backend, matrix);
  Random random(8);
  const std::vector<float> x = random.floats(many * in);
  const std::vector<float> whole = test::run(*backend, x, weight.view, {}, many);
  return bool(same_bits(test::run(*backend, x, weight.view, {}, few), test::first_rows(whole, few, out)));
}

TEST(SimtDeterministic, LayersOfFloatWeights) {
  Random random(2);
  for (const DType type : {DType::f16, DType::bf16, DType::f32}) {
    const test::DenseMatrix matrix(type, 40, 64, random.floats(40 * 64));
    EXPECT_TRUE(same_in_a_batch(matrix, 40, 64, 3, 20, true));
    EXPECT_EQ(same_in_a_batch(matrix, 40, 64, 3, 20, false), type == DType::f32);
  }
}

TEST(SimtDeterministic, LayersThatLargeBatchesDecode) {
  Random random(3);
  const AffineMatrix matrix = test::random_affine(random, 4, 16, 32, 16);
  constexpr int64_t kMany = CudaBackend::kDecodeTokens;
  EXPECT_TRUE(same_in_a_batch(matrix, 16, 32, 5, kMany, true));
  EXPECT_FALSE(same_in_a_batch(matrix, 16, 32, 5, kMany, false));
}

TEST(SimtDeterministic, OutliersAndTables) {
  Random random(4);
  EXPECT_TRUE(same_in_a_batch(test::random_outliers(random, 3, 3, 40, 64, 16), 40, 64, 5, 33, true));
  EXPECT_TRUE(same_in_a_batch(test::random_binary(random, 40, 64, 32), 40, 64, 5, 33, true));
}

/// What a sequence's rows attend to, fed in chunks behind another sequence of `beside` rows.
std::vector<float> attended(const std::vector<int32_t>& chunks, int32_t beside, bool deterministic,
                            DType type = DType::f32) {
  constexpr int64_t kHeads = 2, kHeadDim = 64, kWidth = kHeads * kHeadDim, kRows = 40;
  const auto backend = emulated_backend("f32", deterministic);
  Random random(6), others(7);
  const std::vector<float> all = random.floats(3 * kRows * kWidth);
  const std::vector<int32_t> pages{4, 1, 2}, other_pages{0, 3, 5};
  const Tensor cache(*backend, type, {6, 2, kHeads, cache_page_elements(type, kHeadDim)});
  std::vector<float> result;
  int32_t past = 0;
  for (const int32_t rows : chunks) {
    const int64_t tokens = beside + rows;
    std::vector<AttentionSpan> spans;
    if (beside > 0) spans.push_back({0, beside, 0, other_pages.data()});
    spans.push_back({beside, rows, past, pages.data()});
    const auto part = [&](int64_t which) {
      std::vector<float> values = others.floats(beside * kWidth);
      const auto from = all.begin() + (which * kRows + past) * kWidth;
      values.insert(values.end(), from, from + rows * kWidth);
      return values;
    };
    const std::vector<float> q = part(0), k = part(1), v = part(2);
    std::vector<float> out(size_t(tokens * kWidth), std::numeric_limits<float>::quiet_NaN());
    backend->run(Attention{.q = view_of(q, {tokens, kWidth}),
                           .k = view_of(k, {tokens, kWidth}),
                           .v = view_of(v, {tokens, kWidth}),
                           .cache = cache.view(),
                           .spans = spans,
                           .heads = kHeads,
                           .scale = 0.125f,
                           .out = view_of(out, {tokens, kWidth})});
    result.insert(result.end(), out.begin() + beside * kWidth, out.end());
    past += rows;
  }
  return result;
}

TEST(SimtDeterministic, AttentionFromAnyChunks) {
  const std::vector<float> whole = attended({40}, 0, true);
  EXPECT_TRUE(same_bits(attended({17, 1, 22}, 0, true), whole));
  EXPECT_TRUE(same_bits(attended({9, 31}, 18, true), whole));
  const std::vector<float> of_codes = attended({40}, 0, true, DType::u8);
  EXPECT_TRUE(same_bits(attended({17, 1, 22}, 0, true, DType::u8), of_codes));
  EXPECT_TRUE(same_bits(attended({9, 31}, 18, true, DType::u8), of_codes));
  EXPECT_FALSE(same_bits(attended({9, 31}, 0, false), attended({40}, 0, false)));
}

struct Text {
  std::vector<int32_t> ids;
  size_t chunk;
};
/// Logits of every text's last token; texts go side by side, each in its own chunks.
std::vector<std::vector<float>> last_logits(const std::filesystem::path& folder,
                                            const std::vector<Text>& texts, bool deterministic) {
  const auto backend = emulated_backend("f32", deterministic);
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto model = load_model(checkpoint, *backend);
  KvCache cache(*backend, model->facts(), model->facts().layers, 128 * int64_t(texts.size()));
  Runner runner(*backend, *model, cache);
  std::vector<PageTable> pages(texts.size());
  std::vector<size_t> past(texts.size());
  std::vector<std::vector<float>> logits(texts.size());
  while (true) {
    Batch batch;
    std::vector<size_t> asked;
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto& [ids, chunk] = texts[i];
      const size_t rows = std::min(chunk, ids.size() - past[i]);
      if (rows == 0) continue;
      EXPECT_TRUE(cache.reserve(pages[i], int64_t(past[i] + rows)));
      batch.add(std::span(ids).subspan(past[i], rows), int64_t(past[i]), pages[i]);
      past[i] += rows;
      if (past[i] < ids.size()) continue;
      batch.want_logits();
      asked.push_back(i);
    }
    if (batch.empty()) return logits;
    const TensorView all = runner.run(batch);
    for (size_t i = 0; i < asked.size(); ++i) {
      logits[asked[i]].resize(size_t(model->facts().vocab));
      backend->copy_to_host(logits[asked[i]].data(), all.row(int64_t(i)),
                            all.bytes() / int64_t(asked.size()));
    }
  }
}

// The bundled model at 3 bits: heads of 64, three sequences, 38 rows and more at once.
TEST(SimtDeterministic, ABatchOfSeveralSequencesGivesTheBitsOfEachAlone) {
  const TempFolder folder;
  test::write_rounded(std::filesystem::path(BALLAST_SOURCE_DIR) / "models/demo", folder / "model", 3, 64);
  const auto ids = [](int32_t seed, int32_t count) {
    std::vector<int32_t> all;
    for (int32_t i = 0; i < count; ++i) all.push_back(5 + (seed + i * 131) % 4000);
    return all;
  };
  const std::vector<Text> texts{{ids(1, 22), 22}, {ids(50, 17), 11}, {ids(99, 6), 2}};
  const auto together = last_logits(folder / "model", texts, true);
  for (size_t i = 0; i < texts.size(); ++i) {
    Text alone = texts[i];
    alone.chunk = i == 0 ? 13 : alone.ids.size();
    EXPECT_TRUE(same_bits(last_logits(folder / "model", {alone}, true)[0], together[i])) << i;
  }
}

}  // namespace
}  // namespace ballast
