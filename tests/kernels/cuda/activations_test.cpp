// Image classifiers with rounded activations on the CUDA backend, on the emulator, against the CPU backend: quantizing them,
// and running what was quantized. Both devices compute the golden models in f32, so a value falls on another code only where it
// lies within roundings of f32 of the middle between two.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "engine/io/activation_sites.h"
#include "engine/runtime/runner.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/image_patches.h"
#include "tests/support/quantize_on.h"
#include "tests/support/simt/emulated_backend.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
const fs::path kGolden = fs::path(BALLAST_SOURCE_DIR) / "tests/golden/vit/vit";

std::vector<float> logits_on(Backend& backend, const fs::path& folder) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto model = load_model(checkpoint, backend);
  const nn::ImageFacts& facts = *model->facts().image;
  const std::vector<float> pixels = GoldenTensors(kGolden / "golden.safetensors").floats("pixels");
  const int64_t values = facts.channels * facts.height * facts.width;
  const int64_t images = int64_t(pixels.size()) / values;
  Batch batch;
  batch.add_images(facts, images);
  for (int64_t i = 0; i < images; ++i) fill_patches(facts, pixels.data() + i * values, batch.image(i));
  Runner runner(backend, *model);
  const TensorView logits = runner.run(batch);
  std::vector<float> found(size_t(logits.shape.elements()));
  backend.copy_to_host(found.data(), logits.data, logits.bytes());
  return found;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - b[i], 2);
  return std::sqrt(sum);
}

class SimtActivations : public testing::TestWithParam<int> {
 protected:
  Recipe recipe() const {
    Recipe recipe;
    recipe.grid.bits = 8;
    recipe.activation_bits = GetParam();
    recipe.compensation = Compensation::token;
    recipe.asymmetric = recipe.correct_drift = true;
    recipe.head_bits = 8;
    recipe.damping = 0.1;
    recipe.fill_defaults();
    return recipe;
  }

  const TempFolder folder_;
  std::unique_ptr<Backend> cpu_ = find_backend({.device = "cpu", .threads = 1});
  std::unique_ptr<Backend> cuda_ = test::emulated_backend();
};
INSTANTIATE_TEST_SUITE_P(, SimtActivations, testing::Values(8, 4),
                         [](const auto& test) { return "Bits" + std::to_string(test.param); });

// Without folding, which brings the ends of every channel exactly to the middle between two codes. A weight that got another
// code moves what lies behind it a little.
TEST_P(SimtActivations, QuantizingChoosesTheGridsOfTheCpu) {
  const fs::path source = test::shortened(kGolden, 1, folder_ / "source");
  Recipe recipe = this->recipe();
  recipe.fold_ranges = false;
  const auto here = test::quantize_on(*cpu_, source, folder_ / "cpu", {.recipe = recipe, .samples = 1});
  const auto there = test::quantize_on(*cuda_, source, folder_ / "cuda", {.recipe = recipe, .samples = 1});
  const ActivationSites expected = read_activation_sites(here.checkpoint),
                        found = read_activation_sites(there.checkpoint);
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [name, grid] : expected) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(found.contains(name));
    ActivationGrid other = found.at(name);
    EXPECT_NEAR(other.step, grid.step, 1e-3 * grid.step);
    other.step = grid.step;
    EXPECT_EQ(other, grid);
  }
  ASSERT_EQ(there.report.layers.size(), here.report.layers.size());
  for (size_t i = 0; i < here.report.layers.size(); ++i) {
    const LayerReport &one = here.report.layers[i], &other = there.report.layers[i];
    EXPECT_NEAR(other.error_before, one.error_before, 0.1 * one.error_before) << one.name;
    EXPECT_NEAR(other.error_after, one.error_after, 0.1 * one.error_before) << one.name;
  }
}

// A hundredth of what rounding changes would be a few values that fell on other codes.
TEST_P(SimtActivations, ARoundedModelHasTheLogitsOfTheCpu) {
  const fs::path model = folder_ / "model";
  test::quantize_on(*cpu_, kGolden, model, {recipe()});
  const std::vector<float> expected = logits_on(*cpu_, model);
  const double of_rounding = distance(logits_on(*cpu_, kGolden), expected);
  EXPECT_GT(of_rounding, 0);
  EXPECT_LT(distance(logits_on(*cuda_, model), expected), 0.01 * of_rounding);
}

}  // namespace
}  // namespace ballast
