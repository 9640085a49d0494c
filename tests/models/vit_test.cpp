// ViT and DeiT variants against logits of an independent implementation (see tests/golden/vit/README.md).
#include "models/vit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/runtime/runner.h"
#include "models/registry.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/image_patches.h"

namespace ballast {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/vit";

std::vector<float> logits_of(Backend& backend, nn::Model& model, const std::vector<float>& pixels,
                             int64_t images) {
  const nn::ImageFacts& facts = *model.facts().image;
  Batch batch;
  batch.add_images(facts, images);
  for (int64_t i = 0; i < images; ++i)
    fill_patches(facts, pixels.data() + i * facts.channels * facts.height * facts.width, batch.image(i));
  Runner runner(backend, model);
  const TensorView logits = runner.run(batch);
  return {logits.as<float>(), logits.as<float>() + logits.shape.elements()};
}

class VitVariant : public testing::TestWithParam<std::string> {};

TEST_P(VitVariant, LogitsMatchTransformers) {
  const Checkpoint checkpoint = Checkpoint::open(kGoldens / GetParam());
  const auto backend = find_backend({.device = "cpu"});
  const auto model = load_model(checkpoint, *backend);
  const GoldenTensors golden(kGoldens / GetParam() / "golden.safetensors");
  const std::vector<float> pixels = golden.floats("pixels"), expected = golden.floats("logits");
  const int64_t classes = model->facts().vocab, images = int64_t(expected.size()) / classes;
  const std::vector<float> all = logits_of(*backend, *model, pixels, images);
  ASSERT_EQ(all.size(), expected.size());
  double worst = 0;
  for (size_t i = 0; i < all.size(); ++i) worst = std::max(worst, double(std::fabs(all[i] - expected[i])));
  EXPECT_LE(worst, 2e-4);

  // Alone, an image gives the same bits.
  const size_t values = pixels.size() / size_t(images);
  const std::vector<float> last(pixels.end() - std::ptrdiff_t(values), pixels.end());
  EXPECT_EQ(logits_of(*backend, *model, last, 1),
            std::vector<float>(all.end() - std::ptrdiff_t(classes), all.end()));
}

TEST_P(VitVariant, SameBitsForAnyThreadsAndInstructionSet) {
  const Checkpoint checkpoint = Checkpoint::open(kGoldens / GetParam());
  const GoldenTensors golden(kGoldens / GetParam() / "golden.safetensors");
  const std::vector<float> pixels = golden.floats("pixels");
  std::vector<float> first;
  const std::string missing = unsupported_isas();
  for (const char* isa : {"scalar", "avx2", "avx512"})
    for (const int threads : {1, 3}) {
      if (missing.find(isa) != std::string::npos) continue;
      const auto backend = find_backend({.device = "cpu", .threads = threads, .isa = isa});
      const auto model = load_model(checkpoint, *backend);
      const nn::ImageFacts& facts = *model->facts().image;
      const std::vector<float> logits =
          logits_of(*backend, *model, pixels,
                    int64_t(pixels.size()) / (facts.channels * facts.height * facts.width));
      if (first.empty()) first = logits;
      EXPECT_EQ(logits, first) << isa << ", " << threads << " threads";
    }
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kGoldens))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, VitVariant, testing::ValuesIn(variants()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace ballast
