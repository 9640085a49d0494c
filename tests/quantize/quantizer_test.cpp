// Whole models through the quantizer: the bundled one for quality, the tiny variants for shape.
#include "quantize/quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>

#include "engine/evaluation/perplexity.h"
#include "engine/io/json.h"
#include "engine/io/packed.h"
#include "models/registry.h"
#include "quantize/calibration.h"
#include "tests/support/golden_folders.h"
#include "tests/support/random.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
const fs::path kTree = BALLAST_SOURCE_DIR;
const fs::path kDemo = kTree / "models/demo";

CalibrationTokens random_tokens(int64_t samples, int64_t length, int64_t vocab) {
  test::Random random(5);
  CalibrationTokens tokens{samples, length, {}, "random"};
  for (int64_t i = 0; i < samples * length; ++i) tokens.ids.push_back(int32_t(random.below(vocab)));
  return tokens;
}

CalibrationTokens sample_tokens(const fs::path& folder, int64_t samples, int64_t length) {
  return calibration_from_text(read_file(kDemo / "sample.txt", 1 << 20), "sample.txt",
                               *Tokenizer::open(folder), samples, length, 1);
}

QuantizeReport quantize(const fs::path& source, const fs::path& output, const Recipe& recipe,
                        const CalibrationTokens& tokens, int threads = 2) {
  const Checkpoint checkpoint = Checkpoint::open(source);
  const auto backend = find_backend({.device = "cpu", .threads = threads});
  const auto model = load_model(checkpoint, *backend);
  CheckpointWriter writer(output, {.overwrite = true});
  return quantize_model({.source = checkpoint,
                         .backend = *backend,
                         .model = *model,
                         .recipe = recipe,
                         .tokens = tokens,
                         .writer = writer});
}

std::string bytes_of(const fs::path& folder) {
  return read_file(folder / "model.safetensors", uint64_t(1) << 30);
}

Recipe recipe_of(const char* method, int bits, int64_t group, Compensation compensation) {
  Recipe recipe;
  recipe.method = method;
  recipe.grid.bits = bits;
  recipe.grid.group_size = group;
  recipe.compensation = compensation;
  return recipe;
}

double kl_to_float(const fs::path& folder) {
  const auto backend = find_backend({.device = "cpu"});
  const Checkpoint original = Checkpoint::open(kDemo), quantized = Checkpoint::open(folder);
  const auto reference = load_model(original, *backend), model = load_model(quantized, *backend);
  const auto ids = Tokenizer::open(kDemo)->encode(read_file(kDemo / "sample.txt", 1 << 20));
  return measure_perplexity(*backend, *model, reference.get(), ids, {.context = 512, .windows = 6})
      .reference->kl_mean;
}

TEST(Quantizer, GptqErrsLessThanRtnOnEveryLinearOfTheDemoModel) {
  const TempFolder folder;
  const CalibrationTokens tokens = sample_tokens(kDemo, 24, 256);
  for (const int bits : {2, 3}) {
    const int64_t group = bits == 2 ? 64 : 0;
    const auto rtn =
        quantize(kDemo, folder.path() / "rtn", recipe_of("rtn", bits, group, Compensation::none), tokens);
    const auto gptq =
        quantize(kDemo, folder.path() / "gptq", recipe_of("gptq", bits, group, Compensation::none), tokens);
    ASSERT_EQ(gptq.layers.size(), 24u);
    for (size_t i = 0; i < gptq.layers.size(); ++i)
      EXPECT_LT(gptq.layers[i].error_before, rtn.layers[i].error_before)
          << gptq.layers[i].name << ", " << bits << " bits";
    EXPECT_LT(kl_to_float(folder.path() / "gptq"), 0.7 * kl_to_float(folder.path() / "rtn"));
  }
}

TEST(Quantizer, ChannelCompensationRescuesRtn) {
  const TempFolder folder;
  const CalibrationTokens tokens = sample_tokens(kDemo, 24, 256);
  quantize(kDemo, folder.path() / "plain", recipe_of("rtn", 3, 0, Compensation::none), tokens);
  const auto report =
      quantize(kDemo, folder.path() / "channel", recipe_of("rtn", 3, 0, Compensation::channel), tokens);
  for (const LayerReport& layer : report.layers)
    EXPECT_LE(layer.error_after, layer.error_before) << layer.name;
  EXPECT_LT(kl_to_float(folder.path() / "channel"), 0.95 * kl_to_float(folder.path() / "plain"));
}

TEST(Quantizer, OutputIsTheSameBytesAgainAndOnAnyNumberOfThreads) {
  const TempFolder folder;
  const CalibrationTokens tokens = sample_tokens(kDemo, 4, 128);
  const Recipe recipe = recipe_of("gptq", 3, 64, Compensation::joint);
  quantize(kDemo, folder.path() / "a", recipe, tokens, 2);
  quantize(kDemo, folder.path() / "b", recipe, tokens, 1);
  EXPECT_TRUE(bytes_of(folder.path() / "a") == bytes_of(folder.path() / "b"));
  EXPECT_EQ(read_file(folder.path() / "a/config.json", 1 << 20),
            read_file(folder.path() / "b/config.json", 1 << 20));
}

class EveryVariant : public testing::TestWithParam<std::string> {};

TEST_P(EveryVariant, QuantizesAndLoadsAgain) {
  const fs::path source = kTree / "tests/golden/opt" / GetParam();
  const TempFolder folder;
  const auto backend = find_backend({.device = "cpu"});
  for (const Compensation compensation : {Compensation::none, Compensation::joint, Compensation::position})
    for (const int head_bits : {0, 8}) {
      Recipe recipe = recipe_of("gptq", 4, 0, compensation);
      recipe.head_bits = head_bits;
      recipe.correct_drift = compensation == Compensation::joint;
      recipe.one_pass = head_bits != 0;
      const Checkpoint original = Checkpoint::open(source);
      const auto float_model = load_model(original, *backend);
      const CalibrationTokens tokens = random_tokens(12, 40, float_model->facts().vocab);
      const auto report = quantize(source, folder.path() / "out", recipe, tokens);
      EXPECT_EQ(int64_t(report.layers.size()), float_model->facts().layers * 6 + (head_bits ? 1 : 0));
      for (const LayerReport& layer : report.layers) EXPECT_LT(layer.error_after, 0.1) << layer.name;
      const Checkpoint written = Checkpoint::open(folder.path() / "out");
      const auto model = load_model(written, *backend);
      ASSERT_TRUE(packed_config(written).has_value());
      const auto ids = random_tokens(1, 64, float_model->facts().vocab).ids;
      const auto result = measure_perplexity(*backend, *model, float_model.get(), ids, {.context = 64});
      EXPECT_TRUE(std::isfinite(result.nll));
      EXPECT_LT(result.reference->kl_mean, 0.2) << name_of(compensation) << ", head bits " << head_bits;
    }
}

INSTANTIATE_TEST_SUITE_P(All, EveryVariant, testing::ValuesIn(test::subfolders(kTree / "tests/golden/opt")),
                         [](const auto& variant) { return variant.param; });

// Mean inputs of every layer, by name.
struct MeanInputs final : nn::Observer {
  std::map<std::string, std::vector<double>> sums;
  std::map<std::string, double> counts;
  void input(const nn::Linear& layer, const TensorView& x) override {
    std::vector<double>& sum = sums[layer.name];
    sum.resize(size_t(x.shape[1]));
    for (int64_t t = 0; t < x.shape[0]; ++t)
      for (int64_t i = 0; i < x.shape[1]; ++i) sum[size_t(i)] += double(x.row(t)[i]);
    counts[layer.name] += double(x.shape[0]);
  }
};

// The bias decides a layer's mean output: that of the float model with drift correction, else what the original layer
// makes of the quantized model's own input, also where the codes aim at the float model.
TEST(Quantizer, DriftIsCorrectedOnRequestOnly) {
  const fs::path source = kTree / "tests/golden/opt/plain";
  const TempFolder folder;
  const auto backend = find_backend({.device = "cpu"});
  const Checkpoint original = Checkpoint::open(source);
  const auto float_model = load_model(original, *backend);
  const CalibrationTokens tokens = random_tokens(16, 40, float_model->facts().vocab);
  const auto mean_inputs = [&](nn::Model& model) {
    MeanInputs means;
    HiddenStream stream(*backend, model, tokens);
    for (int64_t index = 0; index < model.facts().layers; ++index)
      stream.for_each_part([&](const HiddenStream::Part& part) {
        nn::ForwardContext context = part.context;
        context.observer = &means;
        model.block(index).forward(context, part.hidden);
      });
    return means;
  };
  const auto mean_output = [&](nn::Linear& layer, const MeanInputs& means, const std::string& name) {
    const std::vector<double>& sum = means.sums.at(name);
    std::vector<float> x(sum.size()), y(size_t(layer.out_features()));
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(sum[i] / means.counts.at(name));
    Workspace workspace(*backend);
    const nn::BatchRows rows{.ids = {}, .positions = {}, .spans = {}};
    layer.forward({*backend, workspace, rows, {}}, {x.data(), DType::f32, {1, int64_t(x.size())}},
                  {y.data(), DType::f32, {1, int64_t(y.size())}});
    return y;
  };
  const MeanInputs float_means = mean_inputs(*float_model);
  for (const bool asymmetric : {false, true})
    for (const bool correct_drift : {false, true}) {
      Recipe recipe = recipe_of("gptq", 3, 0, Compensation::joint);
      recipe.asymmetric = asymmetric;
      recipe.correct_drift = correct_drift;
      quantize(source, folder.path() / "out", recipe, tokens);
      const Checkpoint written = Checkpoint::open(folder.path() / "out");
      const auto model = load_model(written, *backend);
      const MeanInputs means = mean_inputs(*model);
      double kept = 0, corrected = 0, drift = 0;
      for (int64_t index = 0; index < 3; ++index) {
        nn::Linear& layer = *model->block(index).branches[1]->expand().front();
        nn::Linear& float_layer = *float_model->block(index).branches[1]->expand().front();
        const auto got = mean_output(layer, means, layer.name),
                   own = mean_output(float_layer, means, layer.name),
                   wanted = mean_output(float_layer, float_means, layer.name);
        for (size_t i = 0; i < got.size(); ++i) {
          kept += std::pow(double(got[i] - own[i]), 2);
          corrected += std::pow(double(got[i] - wanted[i]), 2);
          drift += std::pow(double(own[i] - wanted[i]), 2);
        }
      }
      SCOPED_TRACE(str(asymmetric ? "asymmetric, " : "", correct_drift ? "corrected" : "not corrected"));
      EXPECT_GT(drift, 1e-4);
      EXPECT_LT(correct_drift ? corrected : kept, 1e-3 * drift);  // streams are kept in binary16
    }
}

TEST(Quantizer, ShareOfZerosChoosesALayoutAndChangesNoResult) {
  const TempFolder folder;
  const fs::path quantized = folder.path() / "q";
  const QuantizeReport report =
      quantize(kDemo, quantized, recipe_of("rtn", 3, 64, Compensation::none), sample_tokens(kDemo, 4, 64));
  auto config = nlohmann::json::parse(read_file(quantized / "config.json", 1 << 20));
  auto& shares = config["quantization_config"]["meta"]["zero_inputs"];
  for (const LayerReport& layer : report.layers) {
    const bool behind_relu = layer.name.ends_with(".fc2");
    ASSERT_EQ(shares.contains(layer.name), behind_relu) << layer.name;
    if (!behind_relu) continue;
    EXPECT_EQ(double(shares[layer.name]), layer.zero_inputs);
    EXPECT_GT(layer.zero_inputs, 0.1);
    EXPECT_LT(layer.zero_inputs, 1);
  }
  const auto by_columns = [&] {
    const auto backend = find_backend({.device = "cpu"});
    const Checkpoint checkpoint = Checkpoint::open(quantized);
    const auto model = load_model(checkpoint, *backend);
    const Weight& weight = model->block(0).branches.back()->contract().weight;
    return std::get<AffineView>(weight.encoding()).by_columns;
  };
  const auto kl_with = [&](double share) {
    for (auto& value : shares) value = share;
    std::ofstream(quantized / "config.json") << config;
    EXPECT_EQ(by_columns(), share > 0.5);
    return kl_to_float(quantized);
  };
  EXPECT_EQ(kl_with(0), kl_with(0.9));
}

TEST(Quantizer, BiasFreeModelsGainBiasesOnlyWhenCompensated) {
  const fs::path source = kTree / "tests/golden/opt/no_bias";
  const TempFolder folder;
  quantize(source, folder.path() / "none", recipe_of("rtn", 4, 0, Compensation::none),
           random_tokens(4, 32, 90));
  quantize(source, folder.path() / "channel", recipe_of("rtn", 4, 0, Compensation::channel),
           random_tokens(4, 32, 90));
  const Checkpoint none = Checkpoint::open(folder.path() / "none"),
                   channel = Checkpoint::open(folder.path() / "channel");
  EXPECT_FALSE(none.config().at("enable_bias").get<bool>());
  EXPECT_TRUE(channel.config().at("enable_bias").get<bool>());
  for (const StoredTensor& tensor : none.tensors())
    EXPECT_FALSE(tensor.name.ends_with("fc1.bias")) << tensor.name;
  EXPECT_NE(channel.find("model.decoder.layers.0.fc1.bias"), nullptr);
}

TEST(Quantizer, OverridesAndSkipsReachTheFileAndItsReader) {
  const TempFolder folder;
  Recipe recipe = recipe_of("rtn", 3, 64, Compensation::channel);
  recipe.overrides.push_back({"fc2", std::regex("fc2"), 4, 128});
  recipe.overrides.push_back({"layers.0.*q_proj", std::regex("layers.0.*q_proj"), 0, -1});
  const auto report = quantize(kDemo, folder.path() / "out", recipe, sample_tokens(kDemo, 2, 64));
  ASSERT_EQ(report.kept_float, std::vector<std::string>{"model.decoder.layers.0.self_attn.q_proj"});
  const Checkpoint written = Checkpoint::open(folder.path() / "out");
  EXPECT_EQ(read_packed(written, "model.decoder.layers.1.fc2", 256, 1024).bits, 4);
  EXPECT_EQ(read_packed(written, "model.decoder.layers.1.fc2", 256, 1024).group_size, 128);
  EXPECT_EQ(read_packed(written, "model.decoder.layers.1.fc1", 1024, 256).bits, 3);
  EXPECT_FALSE(has_packed_weight(written, "model.decoder.layers.0.self_attn.q_proj"));
  const auto backend = find_backend({.device = "cpu"});
  load_model(written, *backend)->load_all();
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Quantizer, RefusesWhatMakesNoSense) {
  const TempFolder folder;
  const CalibrationTokens tokens = sample_tokens(kDemo, 1, 32);
  EXPECT_NE(
      message_of([&] {
        quantize(kDemo, folder.path() / "out", recipe_of("rtn", 3, 96, Compensation::none), tokens);
      }).find("--group-size 96 does not divide the 256 inputs of model.decoder.layers.0.self_attn.q_proj"),
      std::string::npos);
  EXPECT_NE(
      message_of([&] { recipe_of("rtn", 3, 0, Compensation::joint).check(); }).find("--compensate joint"),
      std::string::npos);
  EXPECT_NE(message_of([&] { recipe_of("gptq", 5, 0, Compensation::none).check(); }).find("--bits is 5"),
            std::string::npos);
  EXPECT_NE(message_of([&] { recipe_of("awq", 4, 0, Compensation::none).check(); }).find("rtn, gptq"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder.path() / "out" / "config.json"));
}

TEST(Quantizer, NamesANonFiniteWeight) {
  const TempFolder folder;
  const fs::path source = kTree / "tests/golden/opt/plain", broken = folder.path() / "broken";
  fs::create_directory(broken);
  fs::copy_file(source / "config.json", broken / "config.json");
  std::string bytes = read_file(source / "model.safetensors", 1 << 24);
  const Checkpoint checkpoint = Checkpoint::open(source);
  const StoredTensor& tensor = checkpoint.require("model.decoder.layers.1.fc1.weight");
  const float nan = NAN;
  bytes.replace(tensor.offset + 4 * 5, 4, reinterpret_cast<const char*>(&nan), 4);
  std::ofstream(broken / "model.safetensors", std::ios::binary) << bytes;
  const std::string message = message_of([&] {
    quantize(broken, folder.path() / "out", recipe_of("rtn", 4, 0, Compensation::none),
             random_tokens(2, 16, 90));
  });
  EXPECT_NE(message.find("model.decoder.layers.1.fc1.weight: element [0, 5]"), std::string::npos) << message;
}

}  // namespace
}  // namespace ballast
