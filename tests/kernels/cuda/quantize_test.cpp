// Whole models quantized by the CUDA backend, on the emulator, against the CPU backend. Host code that followed a pointer into
// the device's memory would end the program, see tests/support/simt/emulated_memory.h.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "engine/io/json.h"
#include "engine/io/quantized.h"
#include "quantize/named_recipe.h"
#include "quantize/records.h"
#include "tests/support/quantize_on.h"
#include "tests/support/simt/emulated_backend.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
using test::quantize_on;
using test::Quantized;
using test::shortened;

const fs::path kGolden = fs::path(BALLAST_SOURCE_DIR) / "tests/golden";

struct Layer {
  LayerReport report;
  std::vector<float> weight, bias;
};
std::vector<Layer> layers_of(const Quantized& quantized) {
  std::vector<Layer> layers;
  for (const LayerReport& report : quantized.report.layers) {
    Layer layer{report, std::vector<float>(size_t(report.out_features * report.in_features)), {}};
    const QuantizedMatrix matrix =
        read_quantized(quantized.checkpoint, report.name, report.out_features, report.in_features);
    for (int64_t row = 0; row < report.out_features; ++row)
      decode_row(matrix, row, layer.weight.data() + row * report.in_features);
    if (const StoredTensor* bias = quantized.checkpoint.find(report.name + ".bias"))
      layer.bias = quantized.checkpoint.floats(*bias);
    layers.push_back(std::move(layer));
  }
  return layers;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - b[i], 2);
  return std::sqrt(sum);
}

class SimtQuantize : public testing::TestWithParam<const char*> {
 protected:
  /// Both devices' outputs, layer by layer. The golden models' layers have groups that no fragments hold, so both compute in
  /// f32, and the inputs of a layer differ by some 2^-20 of their size as long as the layers before it are the same. Then codes
  /// differ only where a weight lies so close to the middle between two codes, and in that row's columns behind such a code,
  /// which take its error: `tied` is the share of such rows. From there on everything differs, as if the model were another:
  /// the mean error of the layers may then be another by a quarter. `bias_slack`: relative, of biases beside that.
  void expect_same(const Recipe& recipe, double tied, int64_t blocks = 2, double bias_slack = 1e-3) {
    const fs::path source = shortened(kGolden / GetParam(), blocks, folder_ / "source");
    const auto cpu = layers_of(quantize_on(*cpu_, source, folder_ / "cpu", {recipe}));
    const auto cuda = layers_of(quantize_on(*cuda_, source, folder_ / "cuda", {recipe}));
    ASSERT_EQ(cuda.size(), cpu.size());
    ASSERT_FALSE(cpu.empty());
    bool same = true;
    double here_mean = 0, there_mean = 0;
    for (size_t i = 0; i < cpu.size(); ++i) {
      const LayerReport &here = cpu[i].report, &there = cuda[i].report;
      SCOPED_TRACE(here.name);
      ASSERT_EQ(there.name, here.name);
      here_mean += here.error_after;
      there_mean += there.error_after;
      if (!same) continue;
      int64_t rows = 0;
      for (int64_t row = 0; row < here.out_features; ++row) {
        const auto at = row * here.in_features;
        rows += !std::equal(cpu[i].weight.begin() + at, cpu[i].weight.begin() + at + here.in_features,
                            cuda[i].weight.begin() + at);
      }
      const double share = double(rows) / double(here.out_features);
      EXPECT_LE(share, tied);
      EXPECT_NEAR(there.error_before, here.error_before, (1e-3 + share) * here.error_before);
      EXPECT_NEAR(there.error_after, here.error_after, (1e-3 + share) * here.error_before);
      EXPECT_NEAR(there.zero_inputs, here.zero_inputs, 1e-3);
      ASSERT_EQ(cuda[i].bias.size(), cpu[i].bias.size());
      const std::vector<float> nothing(cpu[i].bias.size());
      // A share of rows that are others altogether makes a distance of its root.
      EXPECT_LE(distance(cuda[i].bias, cpu[i].bias),
                (bias_slack + std::sqrt(share)) * distance(cpu[i].bias, nothing));
      same = rows == 0;
    }
    EXPECT_NEAR(there_mean, here_mean, same ? 1e-3 * here_mean : 0.25 * here_mean);
  }
  bool images() const { return std::string(GetParam()).starts_with("vit"); }

  static Recipe recipe_of(const char* method, int bits) {
    Recipe recipe;
    recipe.method = method;
    recipe.grid.bits = bits;
    recipe.fill_defaults();
    return recipe;
  }

  const TempFolder folder_;
  std::unique_ptr<Backend> cpu_ = find_backend({.device = "cpu", .threads = 1});
  std::unique_ptr<Backend> cuda_ = test::emulated_backend();
};
constexpr double kTied = 0.1;
INSTANTIATE_TEST_SUITE_P(, SimtQuantize, testing::Values("opt/plain", "vit/vit"), [](const auto& name) {
  return std::string(name.param).starts_with("opt") ? "Opt" : "Vit";
});

// Codes that see no inputs; biases do.
TEST_P(SimtQuantize, Rtn) {
  Recipe recipe = recipe_of("rtn", 3);
  recipe.compensation = Compensation::channel;
  recipe.correct_drift = true;
  expect_same(recipe, 0, images() ? 1 : 2);
}

TEST_P(SimtQuantize, GptqWithSweeps) {
  Recipe recipe = recipe_of("gptq", 3);
  recipe.options.sweeps = 2;
  recipe.one_pass = !images();
  recipe.compensation = images() ? Compensation::token : Compensation::position;
  expect_same(recipe, kTied, 1);
}

TEST_P(SimtQuantize, TheBalancedRecipe) {
  const NamedRecipe named = named_recipe("balanced", images());
  Recipe recipe = recipe_of("gptq", 3);
  recipe.grid.range_shrink = 0;
  recipe.damping = named.damping;
  recipe.act_order = named.act_order;
  recipe.asymmetric = named.asymmetric;
  recipe.correct_drift = named.correct_drift;
  recipe.options.sweeps = std::min(2, std::max(0, named.sweeps));
  recipe.class_weight = std::min<int64_t>(named.class_weight, 5);
  expect_same(recipe, kTied);
}

TEST_P(SimtQuantize, CurvatureFromGradients) {
  Recipe recipe = recipe_of("gptq", 4);
  recipe.curvature = images() ? CurvatureKind::guided : CurvatureKind::output_adaptive;
  recipe.curvature_groups = 2;
  recipe.compensation = Compensation::channel;
  recipe.head_bits = images() ? 0 : 8;
  expect_same(recipe, kTied, 1);
}

class SimtQuantizeText : public SimtQuantize {};
INSTANTIATE_TEST_SUITE_P(, SimtQuantizeText, testing::Values("opt/plain"), [](const auto&) { return "Opt"; });

// Biases of k have no gradient, since softmax takes no notice of them, and Adam goes where rounding points it.
TEST_P(SimtQuantizeText, Tuned) {
  Recipe recipe = recipe_of("gptq", 3);
  recipe.tune_epochs = 1;
  expect_same(recipe, kTied, 1, 0.03);
}

TEST_P(SimtQuantizeText, DriftFedBack) {
  Recipe recipe = recipe_of("gptq", 3);
  recipe.gptaq = 0.25;
  expect_same(recipe, kTied, 1);
}

TEST_P(SimtQuantizeText, OtherMethods) {
  for (const char* method : {"comq", "spqr", "billm"}) {
    SCOPED_TRACE(method);
    Recipe recipe = recipe_of(method, std::string(method) == "billm" ? 1 : 3);
    if (std::string(method) == "spqr") recipe.grid.group_size = 4;
    if (std::string(method) == "comq") recipe.options.sweeps = 2;
    // SpQR rounds the scales of 16 rows together, a fifth of the widest layer.
    expect_same(recipe, std::string(method) == "spqr" ? 0.25 : kTied, 1);
  }
}

// What is in the journal came from the device and goes back there: the same files, wherever the run was stopped.
TEST_P(SimtQuantize, StoppedAndResumed) {
  const fs::path source = shortened(kGolden / GetParam(), 1, folder_ / "source");
  Recipe recipe = recipe_of("gptq", 3);
  recipe.asymmetric = recipe.correct_drift = true;
  RunFingerprint fingerprint;
  add_recipe(fingerprint, recipe);
  const auto weights_in = [&](const char* name) {
    return read_file(folder_ / name / "model.safetensors", uint64_t(1) << 30);
  };
  const auto modules = int64_t(
      quantize_on(*cuda_, source, folder_ / "whole", {.recipe = recipe, .samples = 2}).report.layers.size());
  const std::string expected = weights_in("whole");
  for (const int64_t stop : {int64_t(2), modules - 1}) {
    SCOPED_TRACE(stop);
    const fs::path work = folder_ / str("work-", stop);
    int64_t resumed = 0;
    {
      Journal journal(work, fingerprint, Journal::Found::resume);
      EXPECT_THROW(quantize_on(*test::emulated_backend(), source, folder_ / "cut",
                               {.recipe = recipe, .samples = 2, .journal = &journal, .stop = stop}),
                   test::QuantizeStop);
    }
    Journal journal(work, fingerprint, Journal::Found::resume);
    quantize_on(*test::emulated_backend(), source, folder_ / "cut",
                {.recipe = recipe, .samples = 2, .journal = &journal, .resumed = &resumed});
    EXPECT_EQ(resumed, stop);
    EXPECT_TRUE(weights_in("cut") == expected);
  }
}

}  // namespace
}  // namespace ballast
