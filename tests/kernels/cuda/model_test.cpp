// Whole models on the CUDA backend, on the emulator, against the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "models/registry.h"
#include "tests/support/golden_folders.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/image_patches.h"
#include "tests/support/logits.h"
#include "tests/support/rounded_model.h"
#include "tests/support/simt/emulated_backend.h"
#include "tests/support/simt/emulated_memory.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

const std::filesystem::path kSource = BALLAST_SOURCE_DIR;

std::vector<float> logits_on(Backend& backend, const std::filesystem::path& folder,
                             const std::vector<int32_t>& ids, size_t chunk) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto model = load_model(checkpoint, backend);
  return logits_of(backend, *model, ids, chunk);
}

double largest_of(const std::vector<float>& values) {
  double largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(double(value)));
  return largest;
}

// Float weights are multiplied in f32 or in their own 16 bits: the two devices differ in the order of sums, and beyond 15
// tokens in the rounding of x to 16 bits.
TEST(SimtModel, EveryVariantOfOptAgreesWithTheCpu) {
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const auto cuda = test::emulated_backend();
  for (const std::string& name : test::subfolders(kSource / "tests/golden/opt")) {
    SCOPED_TRACE(name);
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 12; ++i) ids.push_back(4 + i * 7 % 40);
    const auto folder = kSource / "tests/golden/opt" / name;
    const std::vector<float> expected = logits_on(*cpu, folder, ids, 12);
    const double bound = 1e-5 * largest_of(expected);
    for (const size_t chunk : {12, 5}) {
      const std::vector<float> logits = logits_on(*cuda, folder, ids, chunk);
      ASSERT_EQ(logits.size(), expected.size());
      for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], bound) << "logit " << i;
    }
  }
}

// Against the independent implementation that the CPU is held to, see tests/models/vit_test.cpp, and as close where everything
// is f32. An image's 16 rows and more meet 16-bit weights, and heads of 64 keys and values, rounded to 11 bits: in these models
// of two or three layers that may come to four roundings of the largest logit.
TEST(SimtModel, EveryVariantOfVitMatchesTransformers) {
  const auto cuda = test::emulated_backend();
  for (const std::string& name : test::subfolders(kSource / "tests/golden/vit")) {
    SCOPED_TRACE(name);
    const auto folder = kSource / "tests/golden/vit" / name;
    const GoldenTensors golden(folder / "golden.safetensors");
    const std::vector<float> pixels = golden.floats("pixels"), expected = golden.floats("logits");
    const Checkpoint checkpoint = Checkpoint::open(folder);
    const auto model = load_model(checkpoint, *cuda);
    const nn::ImageFacts& facts = *model->facts().image;
    const int64_t images = int64_t(expected.size()) / model->facts().vocab;
    Batch batch;
    batch.add_images(facts, images);
    for (int64_t i = 0; i < images; ++i)
      fill_patches(facts, pixels.data() + i * facts.channels * facts.height * facts.width, batch.image(i));
    Runner runner(*cuda, *model);
    const TensorView logits = runner.run(batch);
    ASSERT_EQ(logits.shape.elements(), int64_t(expected.size()));
    std::vector<float> found(expected.size());
    cuda->copy_to_host(found.data(), logits.data, logits.bytes());
    const bool rounded = model->facts().hidden / model->facts().heads == 64 || name == "vit_f16";
    const double bound = 2e-4 + (rounded ? 4 * 0x1p-11 * largest_of(expected) : 0);
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(found[i], expected[i], bound);
  }
}

class SimtQuantizedModel : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, SimtQuantizedModel, testing::Values(2, 3, 4, 8));

// The inputs of all 25 linear layers are rounded to 11 bits here and to 24 on the CPU. A rounding moves one layer's output by
// some 2^-12 of its size (errors of many columns partly cancel), and layers add up: 25 of them as independent errors come to
// 5 · 2^-12 of the residual stream's size. The bound is four times that.
TEST_P(SimtQuantizedModel, DemoModelAgreesWithTheCpu) {
  const TempFolder folder;
  test::write_rounded(kSource / "models/demo", folder / "model", GetParam(), 64);
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const auto cuda = test::emulated_backend();
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 24; ++i) ids.push_back(5 + i * 131 % 4000);
  const std::vector<float> expected = logits_on(*cpu, folder / "model", ids, ids.size());
  const std::vector<float> logits = logits_on(*cuda, folder / "model", ids, ids.size());
  ASSERT_EQ(logits.size(), expected.size());
  const double bound = 4 * 5 * 0x1p-12 * largest_of(expected);
  double worst = 0;
  for (size_t i = 0; i < logits.size(); ++i)
    worst = std::max(worst, std::abs(double(logits[i]) - expected[i]));
  EXPECT_LT(worst, bound);
  // A chunk of another size gives the same bits as long as attention takes single rows.
  std::vector<float> by_five = logits_on(*cuda, folder / "model", {ids.begin(), ids.begin() + 10}, 5);
  std::vector<float> by_ten = logits_on(*cuda, folder / "model", {ids.begin(), ids.begin() + 10}, 10);
  EXPECT_TRUE(test::same_bits(by_five, by_ten));
}

// Logits along the greedy text of two sequences that begin together, one step at a time; the text is another's, if given.
struct Text {
  std::vector<float> logits;
  std::vector<std::vector<int32_t>> fed;  ///< of each step, both sequences'
};
Text decoded(Backend& backend, const std::filesystem::path& folder, int steps,
             CacheType type = CacheType::f32, const Text* other = nullptr) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto model = load_model(checkpoint, backend);
  const nn::ModelFacts& facts = model->facts();
  KvCache cache(backend, facts, facts.layers, 256, type);
  Runner runner(backend, *model, cache);
  std::vector<PageTable> pages(2);
  std::vector<std::vector<int32_t>> next{{5, 17, 30}, {9, 4, 21, 33}};
  std::vector<int64_t> lengths{0, 0};
  Text text;
  std::vector<float> row(size_t(2 * facts.vocab));
  for (int step = 0; step < steps; ++step) {
    Batch batch;
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(cache.reserve(pages[i], lengths[i] + int64_t(next[i].size())));
      batch.add(next[i], lengths[i], pages[i]);
      batch.want_logits();
      lengths[i] += int64_t(next[i].size());
    }
    const TensorView logits = runner.run(batch);
    EXPECT_EQ(logits.bytes(), int64_t(row.size() * sizeof(float)));
    backend.copy_to_host(row.data(), logits.data, logits.bytes());
    text.logits.insert(text.logits.end(), row.begin(), row.end());
    std::vector<int32_t> chosen;
    for (size_t i = 0; i < 2; ++i) {
      const auto begin = row.begin() + int64_t(i) * facts.vocab;
      chosen.push_back(other ? other->fed[size_t(step)][i]
                             : int32_t(std::max_element(begin, begin + facts.vocab) - begin));
      next[i] = {chosen.back()};
    }
    text.fed.push_back(chosen);
  }
  return text;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - b[i], 2);
  return std::sqrt(sum);
}

// The same tokens, and logits closer to the CPU's than a tenth of what codes in place of floats change: keys and values differ
// by roundings of f32, which tip a code over only where it lies so close to the middle between two.
TEST(SimtModel, ACacheOfCodesGivesTheTextOfTheCpu) {
  const auto folder = kSource / "tests/golden/opt/plain";
  constexpr int kSteps = 30;
  const auto cpu = find_backend({.device = "cpu", .threads = 1});
  const auto cuda = test::emulated_backend();
  const Text expected = decoded(*cpu, folder, kSteps, CacheType::int8);
  const Text found = decoded(*cuda, folder, kSteps, CacheType::int8);
  const Text exact = decoded(*cpu, folder, kSteps, CacheType::f32, &expected);
  EXPECT_EQ(found.fed, expected.fed);
  const double of_codes = distance(exact.logits, expected.logits);
  EXPECT_GT(of_codes, 0) << "the cache is as it always was";
  EXPECT_LT(distance(found.logits, expected.logits), 0.1 * of_codes);
}

// Pages are added on the way.
TEST(SimtGraphs, StepsThatAreReplayedGiveTheSameBits) {
  const auto folder = kSource / "tests/golden/opt/plain";
  constexpr int kSteps = 16;
  const auto plain = test::emulated_backend(), graphs = test::emulated_backend();
  const Text expected = decoded(*plain, folder, kSteps);
  cuda::LaunchQueue& queue = static_cast<CudaBackend&>(*graphs).machine().queue();
  queue.open(true);
  EXPECT_TRUE(test::same_bits(decoded(*graphs, folder, kSteps).logits, expected.logits));
  // All steps but the prompt's, and the first one before and after scratch memory has grown.
  EXPECT_GE(queue.replays(), kSteps - 6);
}

// The third time is a replay; other memory or another size is not.
TEST(SimtGraphs, LaunchesThatDifferAreNotReplayed) {
  const auto backend = test::emulated_backend();
  cuda::LaunchQueue& queue = static_cast<CudaBackend&>(*backend).machine().queue();
  queue.open(true);
  constexpr int64_t kWidth = 32;
  Tensor x(*backend, DType::f32, {4, kWidth}), y(*backend, DType::f32, {4, kWidth});
  std::vector<float> values(4 * kWidth);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i % 7);
  backend->copy_to_device(x.view().as<float>(), values.data(), x.bytes());
  const auto normalize = [&](const OutputView& to, int times) {
    for (int i = 0; i < times; ++i) backend->run(LayerNorm{.x = x.view().rows(0, to.shape[0]), .y = to});
    backend->copy_to_host(values.data(), to.data, 4);
  };
  const OutputView whole = y.view(), part = y.view().rows(1, 3);
  for (const int times : {10, 10, 10}) normalize(whole, times);
  EXPECT_EQ(queue.replays(), 2);
  normalize(part, 10);
  normalize(whole, 9);
  EXPECT_EQ(queue.replays(), 2);
  normalize(whole, 10);
  EXPECT_EQ(queue.replays(), 3);
  for (int i = 0; i < 3; ++i) normalize(whole, 2);
  EXPECT_EQ(queue.replays(), 3) << "too short to be worth a graph";
}

TEST(SimtBackend, RunningOutOfMemorySaysHowMuchWasNeeded) {
  const auto backend = test::emulated_backend();
  simt::set_memory_limit(simt::allocated_bytes() + 1000);
  const std::string message = test::message_of<RuntimeFailure>([&] { backend->allocate(123456); });
  simt::set_memory_limit(int64_t(1) << 60);
  EXPECT_NE(message.find("123456 bytes"), std::string::npos) << message;
  backend->release(backend->allocate(123456));
}

TEST(SimtBackend, WhatItCannotDoIsRefusedByName) {
  EXPECT_NE(test::message_of<Error>([&] { test::emulated_backend("int8"); }).find("int8 is for --device cpu"),
            std::string::npos);
}

}  // namespace
}  // namespace ballast
