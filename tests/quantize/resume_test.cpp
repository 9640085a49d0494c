// A run stopped after any module and resumed gives the bytes of a run that was not.
#include <gtest/gtest.h>

#include "engine/io/json.h"
#include "models/registry.h"
#include "quantize/quantizer.h"
#include "quantize/records.h"
#include "tests/support/random_calibration.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = BALLAST_SOURCE_DIR "/tests/golden/opt";

struct Stopped {};

class Resume : public testing::Test {
 protected:
  /// Quantizes into `name`, stopping after `modules`; true when it got to the end. `journal`: resume from it.
  bool run(const std::string& name, const std::string& model_name, const Recipe& recipe, bool journal,
           int64_t modules = INT64_MAX) {
    const Checkpoint checkpoint = Checkpoint::open(kModels / model_name);
    const auto backend = find_backend({.device = "cpu", .threads = 1});
    const auto model = load_model(checkpoint, *backend);
    RunFingerprint fingerprint;
    add_recipe(fingerprint, recipe);
    std::optional<Journal> kept;
    if (journal) kept.emplace(folder_ / (name + "-work"), fingerprint, Journal::Found::resume);
    const CalibrationTokens tokens =
        model->facts().image ? test::random_images(*model->facts().image, 6) : test::random_tokens(6, 16, model->facts().vocab);
    CheckpointWriter writer(folder_ / name, {.overwrite = true});
    try {
      const QuantizeReport report = quantize_model({.source = checkpoint,
                                                    .backend = *backend,
                                                    .model = *model,
                                                    .recipe = recipe,
                                                    .tokens = tokens,
                                                    .writer = writer,
                                                    .journal = kept ? &*kept : nullptr,
                                                    .progress = [&](const QuantizeProgress& at) {
                                                      resumed_ = at.resumed;
                                                      if (at.done >= modules) throw Stopped();
                                                    }});
      modules_ = int64_t(report.layers.size());
    } catch (const Stopped&) {
      return false;
    }
    return true;
  }
  std::string files(const std::string& name) const {
    std::string all;
    for (const char* file : {"model.safetensors", "config.json", "quantize_config.json"})
      all += read_file(folder_ / name / file, uint64_t(1) << 30);
    return all;
  }

  TempFolder folder_{memory_folder()};
  int64_t resumed_ = 0;  ///< modules that the last run took from the journal
  int64_t modules_ = 0;  ///< that the last whole run quantized
};

Recipe small_recipe(const std::function<void(Recipe&)>& change) {
  Recipe recipe;
  recipe.grid.bits = 3;
  recipe.damping = 0.1;
  change(recipe);
  recipe.fill_defaults();
  return recipe;
}

TEST_F(Resume, AfterAnyModuleWithAnyRecipe) {
  const struct {
    const char* name;
    const char* model;
    std::function<void(Recipe&)> change;
  } cases[] = {
      {"joint", "plain", [](Recipe&) {}},
      {"drift", "plain", [](Recipe& r) { r.correct_drift = true; }},
      {"asymmetric", "plain", [](Recipe& r) { r.asymmetric = true; }},
      {"gptaq", "plain", [](Recipe& r) { r.gptaq = 1; }},
      {"one pass", "plain", [](Recipe& r) { r.one_pass = r.asymmetric = r.correct_drift = true; }},
      {"position", "f16", [](Recipe& r) { r.compensation = Compensation::position; }},
      {"rtn", "bf16", [](Recipe& r) { r.method = "rtn", r.compensation = Compensation::none; }},
      {"tuned", "plain", [](Recipe& r) { r.tune_epochs = 1; }},
      {"comq", "plain", [](Recipe& r) { r.method = "comq"; }},
      {"output-adaptive", "plain", [](Recipe& r) { r.curvature = CurvatureKind::output_adaptive; }},
      {"guided", "untied",
       [](Recipe& r) { r.curvature = CurvatureKind::guided, r.head_bits = 4, r.asymmetric = true; }},
      {"head", "untied", [](Recipe& r) { r.head_bits = 4, r.correct_drift = true; }},
      {"added biases", "no_bias", [](Recipe& r) { r.compensation = Compensation::channel; }},
      {"activations", "../vit/vit",
       [](Recipe& r) {
         r.grid.bits = r.activation_bits = 4, r.compensation = Compensation::token;
         r.asymmetric = r.correct_drift = true, r.head_bits = 8;
       }},
      {"tuned activations", "../vit/deit",
       [](Recipe& r) { r.activation_bits = 6, r.fold_ranges = r.logarithms = false, r.tune_epochs = 1; }},
      {"skipped", "post_norm_350m",
       [](Recipe& r) {
         r.one_pass = true;
         for (const char* pattern : {"fc2", "layers.1.self_attn"})
           r.overrides.push_back({.pattern = pattern, .regex = std::regex(pattern), .bits = 0});
       }},
  };
  for (const auto& [name, model, change] : cases) {
    SCOPED_TRACE(name);
    const Recipe recipe = small_recipe(change);
    ASSERT_TRUE(run("whole", model, recipe, false));
    const std::string expected = files("whole");
    const int64_t all = modules_;
    for (int64_t stop = 1; stop <= all; ++stop) {
      SCOPED_TRACE(stop);
      ASSERT_FALSE(run("cut", model, recipe, true, stop));
      ASSERT_TRUE(run("cut", model, recipe, true));
      EXPECT_EQ(modules_, all);
      EXPECT_TRUE(files("cut") == expected);
      fs::remove_all(folder_ / "cut-work");
    }
    // Stopped once per module: every run does one more.
    for (int64_t stop = 1; stop <= all; ++stop) {
      run("cut", model, recipe, true, stop);
      EXPECT_LE(resumed_, stop);
    }
    ASSERT_TRUE(run("cut", model, recipe, true));
    EXPECT_TRUE(files("cut") == expected);
    // And once more with everything there.
    ASSERT_TRUE(run("cut", model, recipe, true));
    EXPECT_EQ(resumed_, all);
    EXPECT_TRUE(files("cut") == expected);
    fs::remove_all(folder_ / "cut-work");
  }
}

}  // namespace
}  // namespace ballast
