// ViT and DeiT variants against logits of an independent implementation (see tests/golden/vit/README.md).
#include "models/vit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "engine/nn/backward.h"
#include "engine/runtime/runner.h"
#include "models/registry.h"
#include "tests/support/golden_folders.h"
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
      const std::vector<float> logits = logits_of(
          *backend, *model, pixels, int64_t(pixels.size()) / (facts.channels * facts.height * facts.width));
      if (first.empty()) first = logits;
      EXPECT_EQ(logits, first) << isa << ", " << threads << " threads";
    }
}

INSTANTIATE_TEST_SUITE_P(All, VitVariant, testing::ValuesIn(test::subfolders(kGoldens)),
                         [](const auto& test) { return test.param; });

// Sums the gradients of biases.
class BiasGradients final : public nn::Observer {
 public:
  std::map<std::string, std::vector<double>> sums;

  void input(const nn::Linear&, const TensorView&) override {}
  void gradient(const nn::Linear& layer, const TensorView&, const TensorView& dz) override {
    std::vector<double>& sum = sums[layer.name];
    sum.resize(size_t(dz.shape[1]));
    for (int64_t t = 0; t < dz.shape[0]; ++t)
      for (int64_t i = 0; i < dz.shape[1]; ++i) sum[size_t(i)] += double(dz.row(t)[i]);
  }
};

TEST_P(VitVariant, GradientsAreThoseOfTheLoss) {
  const Checkpoint checkpoint = Checkpoint::open(kGoldens / GetParam());
  const auto backend = find_backend({.device = "cpu", .threads = 1});
  const auto model = load_model(checkpoint, *backend);
  const std::vector<float> pixels =
      GoldenTensors(kGoldens / GetParam() / "golden.safetensors").floats("pixels");
  Batch batch;
  batch.add_images(*model->facts().image, 2);
  for (int64_t i = 0; i < 2; ++i)
    fill_patches(*model->facts().image, pixels.data() + size_t(i) * pixels.size() / 3, batch.image(i));
  const nn::BatchRows rows = batch.rows();
  Workspace workspace(*backend);
  const OutputView hidden = workspace.floats({rows.tokens(), model->facts().hidden});
  model->embed({*backend, workspace, rows, {}}, hidden);
  std::vector<nn::Block*> blocks;
  for (int64_t i = 0; i < model->facts().layers; ++i) blocks.push_back(&model->block(i));
  const auto loss = [&](nn::Observer* observer) {
    return nn::back_propagate({*backend, workspace, rows, {}, observer},
                              {*model, blocks, hidden, nn::likeliest_class_loss()});
  };
  BiasGradients gradients;
  loss(&gradients);
  std::vector<nn::Linear*> layers{&model->lm_head()};
  for (const auto& branch : blocks.front()->branches) {
    for (nn::Linear* layer : branch->expand()) layers.push_back(layer);
    layers.push_back(&branch->contract());
  }
  for (nn::Linear* layer : layers) {
    if (!layer->bias) continue;
    ASSERT_TRUE(gradients.sums.count(layer->name)) << layer->name;
    const std::vector<float> bias = layer->bias.to_floats();
    constexpr float kStep = 1.0f / 128;
    double up_and_down[2];
    for (const int side : {0, 1}) {
      std::vector<float> moved = bias;
      moved[1] += side ? kStep : -kStep;
      layer->bias = Tensor::from_floats(*backend, moved, {int64_t(moved.size())});
      up_and_down[side] = loss(nullptr);
    }
    layer->bias = Tensor::from_floats(*backend, bias, {int64_t(bias.size())});
    const double expected = (up_and_down[1] - up_and_down[0]) / (2 * double(kStep));
    // A loss of order 1 in f32 is known to some 1e-6, and the third derivative adds a share of the step's square.
    EXPECT_NEAR(gradients.sums[layer->name][1], expected, 2e-3 + 0.02 * std::fabs(expected)) << layer->name;
  }
}

}  // namespace
}  // namespace ballast
