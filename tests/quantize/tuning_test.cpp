// Scales, biases and codes moved together: where to, and that nothing else moves.
#include "quantize/tuning.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/io/json.h"
#include "models/registry.h"
#include "quantize/calibration.h"
#include "quantize/methods.h"
#include "quantize/quantizer.h"
#include "quantize/source_weight.h"
#include "tests/support/expect_error.h"
#include "tests/support/random.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(BALLAST_SOURCE_DIR) / "tests/golden/opt";

CalibrationTokens random_tokens(int64_t samples, int64_t length, int64_t vocab) {
  test::Random random(5);
  CalibrationTokens tokens{samples, length, {}, "random"};
  for (int64_t i = 0; i < samples * length; ++i) tokens.ids.push_back(int32_t(random.below(vocab)));
  return tokens;
}

std::vector<nn::Linear*> layers_of(nn::Block& block) {
  std::vector<nn::Linear*> layers;
  for (const auto& branch : block.branches) {
    for (nn::Linear* layer : branch->expand()) layers.push_back(layer);
    layers.push_back(&branch->contract());
  }
  return layers;
}

// A tiny model and its layers rounded to 3 bits in groups of 11 or 14 columns.
struct Tiny {
  explicit Tiny(int threads = 1, int64_t samples = 2)
      : checkpoint(Checkpoint::open(kModels / "gelu")),  // smooth: slopes by differences are the gradients
        backend(find_backend({.device = "cpu", .threads = threads})),
        model(load_model(checkpoint, *backend)),
        tokens(random_tokens(samples, 24, model->facts().vocab)) {
    for (int64_t index = 0; index < model->facts().layers; ++index) {
      const auto block = model->make_block(index);
      for (nn::Linear* layer : layers_of(*block)) {
        const std::vector<float> weight = source_weight(checkpoint, *layer);
        const LayerProblem problem{
            .name = layer->name,
            .out_features = layer->out_features(),
            .in_features = layer->in_features(),
            .weight = weight,
            .grid = {.bits = 3, .group_size = layer->in_features() % 11 == 0 ? 11 : 14}};
        records.push_back({.matrix = method_named("rtn").solve(*backend, problem).matrix,
                           .bias = layer->bias.to_floats(),
                           .positions = {},
                           .report = {.name = layer->name}});
      }
    }
  }

  TuningResult run(const TuningOptions& options) {
    return tune(*backend, *model, tokens, records, nullptr, options, [](int64_t, int64_t) {});
  }

  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<nn::Model> model;
  CalibrationTokens tokens;
  std::vector<LayerRecord> records;
};

AffineMatrix& matrix_of(LayerRecord& record) {
  return std::get<AffineMatrix>(record.matrix);
}

// One scale, bias or weight moved a little.
struct Nudge {
  const LayerRecord* record = nullptr;
  int64_t scale = -1, bias = -1;  ///< index, or -1
  double size = 0;                ///< of the scale itself, or in the bias's units, or in codes
  int64_t code = -1;
};

// Σ ‖h − H‖² / Σ ‖H − mean(H)‖² over all tokens of one block's output.
double distance(const std::vector<float>& wanted, const std::vector<float>& got, size_t width) {
  double lost = 0, spread = 0;
  for (size_t begin = 0; begin < wanted.size(); begin += width) {
    const double mean = std::accumulate(wanted.begin() + long(begin), wanted.begin() + long(begin + width), 0.0) / double(width);
    for (size_t i = begin; i < begin + width; ++i) {
      spread += std::pow(double(wanted[i]) - mean, 2);
      lost += std::pow(double(got[i]) - double(wanted[i]), 2);
    }
  }
  return lost / spread;
}

// KL(float ‖ records) in nats per token over all samples, by its definition, and `hidden_weight` times the distance of
// each block's output, where all samples are one part.
double divergence(Tiny& tiny, const Nudge& nudge = {}, double hidden_weight = 0) {
  nn::Model& model = *tiny.model;
  std::vector<std::unique_ptr<nn::Block>> blocks;
  auto record = tiny.records.begin();
  for (int64_t index = 0; index < model.facts().layers; ++index) {
    blocks.push_back(model.make_block(index));
    for (nn::Linear* layer : layers_of(*blocks.back())) {
      const AffineMatrix& matrix = matrix_of(*record);
      const int64_t out = matrix.out_features, in = matrix.in_features;
      std::vector<float> weight(size_t(out * in)), bias(record->bias);
      for (int64_t row = 0; row < out; ++row) matrix.decode_row(row, weight.data() + row * in);
      if (nudge.record == &*record && nudge.bias >= 0) bias[size_t(nudge.bias)] += float(nudge.size);
      if (nudge.record == &*record && nudge.scale >= 0) {
        const int64_t row = nudge.scale / matrix.groups(), group = nudge.scale % matrix.groups();
        for (int64_t i = group * matrix.group_size; i < (group + 1) * matrix.group_size; ++i)
          weight[size_t(row * in + i)] *= float(1 + nudge.size);
      }
      if (nudge.record == &*record && nudge.code >= 0) {
        const int64_t row = nudge.code / in, group = nudge.code % in / matrix.group_size;
        weight[size_t(nudge.code)] += float(nudge.size) * matrix.scale(row, group);
      }
      layer->weight = Weight::dense(*tiny.backend, {weight.data(), DType::f32, {out, in}});
      layer->bias = Tensor::from_floats(*tiny.backend, bias, {out});
      ++record;
    }
  }
  HiddenStream stream(*tiny.backend, model, tiny.tokens);
  double sum = 0;
  stream.for_each_part([&](const HiddenStream::Part& part) {
    const nn::ForwardContext& context = part.context;
    const int64_t rows = part.hidden.shape[0], vocab = model.facts().vocab;
    std::vector<std::vector<float>> states[2];
    const auto logits = [&](std::vector<std::vector<float>>& after, const std::function<nn::Block&(int64_t)>& block) {
      const OutputView hidden = context.workspace.floats(part.hidden.shape);
      tiny.backend->copy_to_device(hidden.as<void>(), part.hidden.data, part.hidden.bytes());
      for (int64_t i = 0; i < model.facts().layers; ++i) {
        block(i).forward(context, hidden);
        after.emplace_back(hidden.as<float>(), hidden.as<float>() + hidden.shape.elements());
      }
      const OutputView out = context.workspace.floats({rows, vocab});
      model.head(context, hidden, out);
      return out;
    };
    const OutputView wanted = logits(states[0], [&](int64_t i) -> nn::Block& { return model.block(i); });
    const OutputView got = logits(states[1], [&](int64_t i) -> nn::Block& { return *blocks[size_t(i)]; });
    for (size_t i = 0; i < states[0].size(); ++i)
      sum += hidden_weight * distance(states[0][i], states[1][i], size_t(part.hidden.shape[1]));
    for (int64_t t = 0; t < rows; ++t) {
      const auto normalizer = [&](const OutputView& view) {
        double total = 0;
        for (int64_t v = 0; v < vocab; ++v) total += std::exp(double(view.row(t)[v]));
        return std::log(total);
      };
      const double p = normalizer(wanted), q = normalizer(got);
      for (int64_t v = 0; v < vocab; ++v) {
        const double log_p = double(wanted.row(t)[v]) - p;
        sum += std::exp(log_p) * (log_p - (double(got.row(t)[v]) - q)) / double(tiny.tokens.ids.size());
      }
    }
  });
  return sum;
}

// Adam's first step is its rate in the direction in which the loss falls. So after one step every scale and bias has to
// have moved against its slope, found by differences, wherever that is more than float32 can be wrong.
void expect_first_step_downhill(double hidden_weight) {
  Tiny before, after;
  after.run({.epochs = 1, .hidden_weight = hidden_weight});
  const double noise = 1e-6;  // of a divergence of about 0.2: both sides' logits have some 1e-7 of their size
  int64_t scales = 0, biases = 0, scales_all = 0, biases_all = 0;
  for (size_t i = 0; i < before.records.size(); ++i) {
    LayerRecord &old = before.records[i], &now = after.records[i];
    const auto slope = [&](int64_t scale, int64_t bias, double size) {
      const double up = divergence(before, {&old, scale, bias, size}, hidden_weight),
                   down = divergence(before, {&old, scale, bias, -size}, hidden_weight);
      return std::fabs(up - down) > noise ? up - down : 0;
    };
    for (int64_t at = 0; at < int64_t(matrix_of(old).scales.size()); at += 7) {
      const double change = double(f16_to_f32(matrix_of(now).scales[size_t(at)])) -
                            double(f16_to_f32(matrix_of(old).scales[size_t(at)]));
      const double tilt = slope(at, -1, 0.01);
      ++scales_all, scales += tilt != 0;
      EXPECT_TRUE(tilt == 0 || change * tilt < 0)
          << old.report.name << " scale " << at << ": " << change << ", " << tilt;
    }
    for (int64_t at = 0; at < int64_t(old.bias.size()); at += 5) {
      const double change = double(now.bias[size_t(at)]) - double(old.bias[size_t(at)]);
      const double tilt = slope(-1, at, 0.01);
      ++biases_all, biases += tilt != 0;
      EXPECT_TRUE(tilt == 0 || change * tilt < 0)
          << old.report.name << " bias " << at << ": " << change << ", " << tilt;
    }
  }
  EXPECT_GT(scales, scales_all / 2);
  EXPECT_GT(biases, biases_all / 2);
}

TEST(Tuning, TheFirstStepGoesAgainstTheGradient) {
  expect_first_step_downhill(0);
}

// At this weight nine tenths of the loss are the hidden states'.
TEST(Tuning, TheFirstStepGoesAgainstTheGradientOfHiddenStatesToo) {
  expect_first_step_downhill(10);
}

TEST(Tuning, ComesCloserToTheFloatModel) {
  Tiny tiny(2, 64);
  const double before = divergence(tiny);
  const TuningResult result = tiny.run({.epochs = 4});
  const double after = divergence(tiny);
  EXPECT_LT(after, 0.9 * before);
  EXPECT_NEAR(result.before, before, 0.2 * before);  // the first of two parts, before any step
  EXPECT_LT(result.after, result.before);
}

// One step at a rate of one code: every code goes one down where the loss grows with its weight, one up where it
// falls, and stays where the codes end. A step of one code leaves no level near a boundary.
TEST(Tuning, CodesGoAgainstTheGradientAndStayCodes) {
  Tiny before, after;
  const TuningResult result = after.run({.epochs = 1, .scale_rate = 0, .bias_rate = 0, .code_rate = 1});
  const double noise = 1e-6;
  int64_t seen = 0, all = 0, moved = 0, codes = 0;
  for (size_t i = 0; i < before.records.size(); ++i) {
    const AffineMatrix &old = matrix_of(before.records[i]), &now = matrix_of(after.records[i]);
    now.check(after.records[i].report.name);
    EXPECT_EQ(old.scales, now.scales);
    EXPECT_EQ(old.zero_points, now.zero_points);
    for (size_t at = 0; at < old.codes.size(); ++at) moved += old.codes[at] != now.codes[at];
    codes += int64_t(old.codes.size());
    for (int64_t at = 0; at < int64_t(old.codes.size()); at += 41) {
      const auto with = [&](double size) {
        return divergence(before, {&before.records[i], -1, -1, size, at});
      };
      const double tilt = with(0.05) - with(-0.05);
      ++all;
      if (std::fabs(tilt) < noise) continue;
      ++seen;
      const int was = old.codes[size_t(at)],
                wanted = std::clamp(was + (tilt > 0 ? -1 : 1), 0, old.max_code());
      EXPECT_EQ(int(now.codes[size_t(at)]), wanted)
          << before.records[i].report.name << " code " << at << ": " << was << ", " << tilt;
    }
  }
  EXPECT_GT(seen, all / 2);
  EXPECT_DOUBLE_EQ(result.codes_moved, double(moved) / double(codes));
  EXPECT_GT(result.codes_moved, 0.5);
}

TEST(Tuning, MovingCodesComesCloserStill) {
  Tiny without(2, 64), with(2, 64);
  without.run({.epochs = 40});
  const TuningResult result = with.run({.epochs = 40, .code_rate = 0.03});
  EXPECT_LT(divergence(with), 0.9 * divergence(without));
  EXPECT_GT(result.codes_moved, 0);
  EXPECT_LT(result.codes_moved, 0.5);
}

TEST(Tuning, LeavesCodesAndZeroPointsAlone) {
  Tiny before, after;
  after.run({.epochs = 3, .scale_rate = 0.05, .bias_rate = 0.05});
  bool scales = false, biases = false;
  for (size_t i = 0; i < before.records.size(); ++i) {
    LayerRecord &old = before.records[i], &now = after.records[i];
    EXPECT_EQ(matrix_of(old).codes, matrix_of(now).codes);
    EXPECT_EQ(matrix_of(old).zero_points, matrix_of(now).zero_points);
    EXPECT_EQ(matrix_of(old).scales.size(), matrix_of(now).scales.size());
    EXPECT_EQ(old.positions, now.positions);
    EXPECT_EQ(old.report.name, now.report.name);
    scales |= matrix_of(old).scales != matrix_of(now).scales;
    biases |= old.bias != now.bias;
    matrix_of(now).check(now.report.name);
  }
  EXPECT_TRUE(scales && biases);
}

TEST(Tuning, LayersWithoutAUniformGridStayAsTheyAre) {
  Tiny tiny;
  const LayerRecord original = tiny.records[3];
  const AffineMatrix& affine = std::get<AffineMatrix>(original.matrix);
  ResidualBinaryMatrix binary{.out_features = affine.out_features,
                              .in_features = affine.in_features,
                              .block_size = affine.in_features,
                              .codes = std::vector<uint8_t>(affine.codes.size()),
                              .salient = std::vector<uint8_t>(size_t(affine.in_features)),
                              .coefficients = {}};
  binary.coefficients.resize(size_t(affine.out_features) * ResidualBinaryMatrix::kCoefficients);
  tiny.records[3].matrix = binary;
  tiny.run({.epochs = 1});
  EXPECT_EQ(std::get<ResidualBinaryMatrix>(tiny.records[3].matrix).coefficients, binary.coefficients);
  EXPECT_EQ(tiny.records[3].bias, original.bias);
}

void quantize(const fs::path& output, const Recipe& recipe, int threads) {
  const Checkpoint checkpoint = Checkpoint::open(kModels / "plain");
  const auto backend = find_backend({.device = "cpu", .threads = threads});
  const auto model = load_model(checkpoint, *backend);
  const CalibrationTokens tokens = random_tokens(40, 40, model->facts().vocab);
  CheckpointWriter writer(output, {.overwrite = true});
  const QuantizeReport report = quantize_model({.source = checkpoint,
                                                .backend = *backend,
                                                .model = *model,
                                                .recipe = recipe,
                                                .tokens = tokens,
                                                .writer = writer});
  EXPECT_EQ(report.tuning_before > 0, recipe.tune_epochs > 0);
}

std::string bytes_of(const fs::path& folder) {
  return read_file(folder / "model.safetensors", uint64_t(1) << 30);
}

TEST(Tuning, AWholeRunChangesScalesAndBiasesOnlyAndIsTheSameOnAnyNumberOfThreads) {
  const TempFolder folder;
  Recipe recipe;
  recipe.grid = {.bits = 3, .group_size = 4};
  quantize(folder / "plain", recipe, 1);
  recipe.tune_epochs = 2;
  quantize(folder / "one", recipe, 1);
  quantize(folder / "three", recipe, 3);
  EXPECT_TRUE(bytes_of(folder / "one") == bytes_of(folder / "three"));
  const Checkpoint plain = Checkpoint::open(folder / "plain"), tuned = Checkpoint::open(folder / "one");
  const std::string plain_bytes = bytes_of(folder / "plain"), tuned_bytes = bytes_of(folder / "one");
  ASSERT_EQ(plain.tensors().size(), tuned.tensors().size());
  int64_t changed = 0;
  for (const StoredTensor& tensor : plain.tensors()) {
    const StoredTensor& other = tuned.require(tensor.name);
    ASSERT_EQ(tensor.bytes, other.bytes);
    const bool same =
        plain_bytes.compare(tensor.offset, tensor.bytes, tuned_bytes, other.offset, other.bytes) == 0;
    const bool tunable = tensor.name.find(".layers.") != std::string::npos &&
                         tensor.name.find("norm") == std::string::npos &&
                         (tensor.name.ends_with("scale") || tensor.name.ends_with(".bias"));
    EXPECT_TRUE(same || tunable) << tensor.name;
    changed += !same;
  }
  EXPECT_EQ(changed, 3 * 6 * 2);
}

TEST(Tuning, AWholeRunThatMovesCodesIsTheSameOnAnyNumberOfThreads) {
  const TempFolder folder;
  Recipe recipe;
  recipe.grid = {.bits = 3, .group_size = 4};
  recipe.tune_epochs = 1;
  quantize(folder / "none", recipe, 1);
  recipe.tune_codes = 0.5;
  quantize(folder / "one", recipe, 1);
  quantize(folder / "three", recipe, 3);
  EXPECT_TRUE(bytes_of(folder / "one") == bytes_of(folder / "three"));
  EXPECT_FALSE(bytes_of(folder / "one") == bytes_of(folder / "none"));
}

TEST(Tuning, IsRefusedWhereNothingCanBeMoved) {
  const auto refusal = [](const std::function<void(Recipe&)>& change) {
    Recipe recipe;
    recipe.tune_epochs = 1;
    change(recipe);
    recipe.fill_defaults();
    recipe.check();
  };
  EXPECT_TRUE(throws_with("--tune makes no sense with --method spqr",
                          [&] { refusal([](Recipe& r) { r.method = "spqr"; }); }));
  EXPECT_TRUE(throws_with("--tune makes no sense with --method billm",
                          [&] { refusal([](Recipe& r) { r.method = "billm", r.grid.bits = 1; }); }));
  for (const Compensation compensation : {Compensation::none, Compensation::position})
    EXPECT_TRUE(throws_with("--tune moves biases",
                            [&] { refusal([&](Recipe& r) { r.compensation = compensation; }); }));
  EXPECT_TRUE(throws_with("--tune-codes is 1.5", [&] { refusal([](Recipe& r) { r.tune_codes = 1.5; }); }));
  EXPECT_TRUE(throws_with("--tune-codes makes no sense without --tune",
                          [&] { refusal([](Recipe& r) { r.tune_codes = 0.1, r.tune_epochs = 0; }); }));
  EXPECT_TRUE(throws_with("--tune-hidden is -1", [&] { refusal([](Recipe& r) { r.tune_hidden = -1; }); }));
  EXPECT_TRUE(throws_with("--tune-hidden makes no sense without --tune",
                          [&] { refusal([](Recipe& r) { r.tune_hidden = 1, r.tune_epochs = 0; }); }));
  EXPECT_TRUE(throws_with("--tune is -1", [&] { refusal([](Recipe& r) { r.tune_epochs = -1; }); }));
  refusal([](Recipe&) {});
}

}  // namespace
}  // namespace ballast
