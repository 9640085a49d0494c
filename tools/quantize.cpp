// ballast quantize: a float checkpoint in, a quantized one out.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <charconv>
#include <chrono>

#include "engine/evaluation/text_data.h"
#include "engine/io/json.h"
#include "engine/io/packed.h"
#include "models/registry.h"
#include "quantize/methods.h"
#include "quantize/quantizer.h"
#include "tools/console.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

constexpr uint64_t kLargestText = uint64_t(4) << 30;

struct QuantizeOptions {
  std::string model, output;
  Recipe recipe;
  std::string scale_scope = "channel";
  std::string compensation;           ///< empty: the method's default
  std::optional<bool> correct_drift;  ///< empty: the method's default
  std::vector<std::string> overrides, skips;
  std::string calibration = "self", dataset = "text";
  int64_t samples = 128, length = 0;
  uint64_t seed = 0;
  bool force = false, dry_run = false, json = false;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::regex compile(const std::string& flag, const std::string& pattern) {
  if (pattern.size() > 512)
    throw Error(fmt::format("{}: the pattern has {} characters, at most 512", flag, pattern.size()));
  try {
    return std::regex(pattern, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    throw Error(fmt::format("{} \"{}\" is not a regular expression: {}", flag, pattern, error.what()));
  }
}

int64_t whole_number(const std::string& flag, const std::string& text) {
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size())
    throw Error(fmt::format("{}: \"{}\" is not a whole number", flag, text));
  return value;
}

// PATTERN=BITS or PATTERN=BITS:GROUP
LayerOverride parse_override(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0)
    throw Error(fmt::format("--override \"{}\": expected PATTERN=BITS or PATTERN=BITS:GROUP", text));
  const std::string value = text.substr(equals + 1);
  const size_t colon = value.find(':');
  LayerOverride rule;
  rule.pattern = text.substr(0, equals);
  rule.regex = compile("--override", rule.pattern);
  rule.bits = int(std::clamp<int64_t>(whole_number("--override", value.substr(0, colon)), -1, 99));
  if (colon != std::string::npos) rule.group_size = whole_number("--override", value.substr(colon + 1));
  if (rule.group_size < -1) throw Error(fmt::format("--override \"{}\": the group size is negative", text));
  return rule;
}

Recipe finished_recipe(const QuantizeOptions& options) {
  Recipe recipe = options.recipe;
  recipe.fill_defaults();
  if (options.scale_scope != "channel" && options.scale_scope != "layer")
    throw Error(fmt::format("--scale-scope is \"{}\", expected channel or layer", options.scale_scope));
  recipe.options.per_layer = options.scale_scope == "layer";
  // With error feedback the plain channel mean gains little; codes for centred inputs and the drift of
  // earlier layers do.
  const bool feedback = method_named(recipe.method).uses_curvature;
  recipe.compensation = options.compensation.empty()
                            ? (feedback ? Compensation::joint : Compensation::channel)
                            : compensation_named(options.compensation);
  recipe.correct_drift =
      options.correct_drift.value_or(feedback && recipe.compensation != Compensation::none);
  for (const std::string& text : options.overrides) recipe.overrides.push_back(parse_override(text));
  for (const std::string& pattern : options.skips)
    recipe.overrides.push_back({.pattern = pattern, .regex = compile("--skip", pattern), .bits = 0});
  recipe.check();
  return recipe;
}

void refuse_same_folder(const QuantizeOptions& options) {
  std::error_code ignored;
  if (std::filesystem::equivalent(options.model, options.output, ignored))
    throw Error(fmt::format("-o {}: is the model's own folder; writing there would destroy the source",
                            options.output));
}

CalibrationTokens calibration_tokens(const QuantizeOptions& options, const GlobalOptions& global,
                                     Backend& backend, nn::Model& model, const Tokenizer& tokenizer,
                                     int64_t length) {
  if (options.calibration != "self") {
    const std::string raw = read_file(options.calibration, kLargestText);
    return calibration_from_text(join_rows(raw, dataset_from(options.dataset)), options.calibration,
                                 tokenizer, options.samples, length, options.seed);
  }
  Progress progress(global);
  const Clock::time_point start = Clock::now();
  CalibrationTokens tokens = calibration_from_model(
      backend, model, tokenizer.vocabulary_size(), options.samples, length, options.seed,
      [&](int64_t done, int64_t all) {
        check_interrupt();
        const double left = seconds_since(start) * double(all - done) / double(std::max<int64_t>(1, done));
        progress.update(
            fmt::format("self-calibration: {} of {} tokens, {} left", done, all, human_seconds(left)));
      });
  progress.finish();
  for (int64_t index = 0; index < model.facts().layers; ++index) model.unload_block(index);
  return tokens;
}

void show_plan(const QuantizeOptions& options, const QuantizePlan& plan, const Recipe& recipe) {
  if (options.json)
    return print_json({{"modules", plan.modules},
                       {"weights", plan.weights},
                       {"bits_per_weight", plan.bits_per_weight},
                       {"output_bytes", plan.output_bytes},
                       {"peak_memory_bytes", plan.peak_memory_bytes},
                       {"gigaflops", plan.gigaflops}});
  print(fmt::format(
      "would quantize {} modules, {} weights, to {:.3f} bits per weight ({}, compensation {})\n",
      plan.modules, plan.weights, plan.bits_per_weight, recipe.method, name_of(recipe.compensation)));
  // 80 GFLOP/s is what two cores without AVX-512 sustain here; the estimate is for planning, not a promise.
  print(fmt::format("output about {}, peak memory about {}, about {:.0f} GFLOP ({} at 80 GFLOP/s)\n",
                    human_bytes(double(plan.output_bytes)), human_bytes(double(plan.peak_memory_bytes)),
                    plan.gigaflops, human_seconds(plan.gigaflops / 80)));
}

void quantize(const QuantizeOptions& options, const GlobalOptions& global) {
  const Recipe recipe = finished_recipe(options);
  if (options.output.empty() && !options.dry_run) throw Error("-o is missing: the folder to write to");
  if (options.samples < 1) throw Error(fmt::format("--samples is {}, expected 1 or more", options.samples));
  const Checkpoint checkpoint = Checkpoint::open(options.model);
  if (packed_config(checkpoint) && !options.force)
    throw Error(fmt::format("{}: is quantized already; --force quantizes what it decodes to", options.model));
  const std::unique_ptr<Backend> backend = find_backend(global.backend);
  const std::unique_ptr<nn::Model> model = load_model(checkpoint, *backend);
  const int64_t longest = model->facts().max_positions;
  const int64_t length = options.length > 0 ? options.length : std::min<int64_t>(2048, longest);
  if (length < 2 || length > longest)
    throw Error(fmt::format("--length is {}, expected 2 to the model's context, {}", length, longest));
  // Planned in any case: what cannot be quantized is refused before calibration takes its time.
  const QuantizePlan plan = plan_quantization(checkpoint, *model, recipe, options.samples, length);
  if (options.dry_run) return show_plan(options, plan, recipe);

  refuse_same_folder(options);
  CheckpointWriter writer(options.output, {.overwrite = options.force});
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(options.model);
  if (tokenizer->vocabulary_size() > model->facts().vocab)
    throw Error(fmt::format("{}: the tokenizer has {} ids, the model's embedding {} rows", options.model,
                            tokenizer->vocabulary_size(), model->facts().vocab));
  const Clock::time_point begun = Clock::now();
  const CalibrationTokens tokens = calibration_tokens(options, global, *backend, *model, *tokenizer, length);
  const double calibration_seconds = seconds_since(begun);
  // GPTQ's rule of thumb: a second moment needs several times more rows than columns.
  if (options.samples * length < 2 * model->facts().ffn)
    spdlog::warn("{} calibration tokens are few for layers of {} inputs; expect damping to do the work",
                 options.samples * length, model->facts().ffn);

  Progress progress(global);
  const Clock::time_point start = Clock::now();
  const QuantizeReport report = quantize_model(
      {.source = checkpoint,
       .backend = *backend,
       .model = *model,
       .recipe = recipe,
       .tokens = tokens,
       .writer = writer,
       .progress = [&](const QuantizeProgress& at) {
         check_interrupt();
         const double left = seconds_since(start) * double(at.total - at.done) / double(at.done);
         progress.update(
             fmt::format("{} of {}: {}, {} left", at.done, at.total, at.module, human_seconds(left)));
       }});
  progress.finish();
  if (options.json) {
    nlohmann::json json = report.json();
    json["calibration_seconds"] = calibration_seconds;
    json["output"] = options.output;
    return print_json(json);
  }
  print(report.table());
  print(fmt::format(
      "\n{}: {:.3f} bits per weight in {} modules, {} on disk, {} + {} calibration, peak memory {}\n",
      options.output, report.bits_per_weight(), report.layers.size(),
      human_bytes(double(report.output_bytes)), human_seconds(report.seconds),
      human_seconds(calibration_seconds), human_bytes(double(report.peak_memory_bytes))));
}

// Flags of single methods; Recipe::check refuses them with others.
void add_method_options(CLI::App& app, MethodOptions& method, std::string& scale_scope) {
  const auto option = [&app](const char* flag, auto& value, const char* type, const char* help) {
    return app.add_option(flag, value, help)->type_name(type);
  };
  option("--sweeps", method.sweeps, "N",
         "comq, gptq: sweeps of coordinate descent over all codes; with gptq a polish. Default: 8 with comq, else 0");
  app.add_flag("--anneal,!--no-anneal", method.anneal,
               "6 sweeps or more begin with heavy damping that falls from sweep to sweep. Default: on");
  app.add_flag("--greedy-order", method.greedy_order,
               "Sweeps take each row's weights by descending size times input power, as the paper does; slower");
  app.add_flag("--refit-scales,!--no-refit-scales", method.refit_scales,
               "Sweeps also refit scales, in closed form. Default: on");
  app.add_flag("--unbiased-scales,!--no-unbiased-scales", method.unbiased_scales,
               "After the sweeps, scale each output back to full size: least squares shrinks it. Default: on");
  option("--scale-scope", scale_scope, "NAME",
         "comq: channel (each row or group its own scale) or layer (one for all rows)")
      ->capture_default_str();
  option("--outlier-threshold", method.outlier_threshold, "X",
         "spqr: weights whose error exceeds this share of the mean sensitivity keep 16 bits; inf: none")
      ->capture_default_str();
  option("--stat-bits", method.stat_bits, "N", "spqr: bits of the quantized scales and zero points, 1 to 8")
      ->capture_default_str();
  option("--block-size", method.block_size, "N", "billm: columns that share salient columns and coefficients")
      ->capture_default_str();
}

}  // namespace

Subcommand add_quantize(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<QuantizeOptions>();
  Recipe& recipe = options->recipe;
  // Open until the method is known: Recipe::fill_defaults.
  recipe.grid.bits = 0;
  recipe.grid.group_size = -1;
  recipe.damping = -1;
  CLI::App* app = root.add_subcommand("quantize", "Quantize a model to 1, 2, 3, 4 or 8 bits, without training");
  const auto option = [app](const char* flag, auto& value, const char* type, const char* help) {
    return app->add_option(flag, value, help)->type_name(type);
  };
  option("-m,--model", options->model, "DIR", "Folder of the float model")->required();
  option("-o,--output", options->output, "DIR", "Folder to write");
  option("--bits", recipe.grid.bits, "N", "Bits per weight: 2, 3, 4 or 8; billm has no choice");
  option("--group-size", recipe.grid.group_size, "N",
         "Columns that share a scale; 0: the whole row. Default: 0; 16 with spqr");
  app->add_flag("--symmetric", recipe.grid.symmetric, "Zero point in the middle of the codes");
  option("--method", recipe.method, "NAME",
         "rtn: round to nearest; gptq: error feedback; comq: coordinate descent; spqr: small groups whose scales "
         "are quantized too, outliers in 16 bits; billm: signs with scales per row and block")
      ->capture_default_str();
  add_method_options(*app, recipe.options, options->scale_scope);
  option("--compensate", options->compensation, "NAME",
         "none; channel: mean output error into the bias; joint: codes for centred inputs, then channel; "
         "position: channel "
         "plus a vector per position. Default: channel with rtn, joint with the others");
  // A plain flag on an optional would be set to false where the flag is absent.
  app->add_flag_function(
      "--correct-drift,!--no-correct-drift", [options](int64_t count) { options->correct_drift = count > 0; },
      "Biases also take out the mean shift left by earlier layers. Default: on, off with rtn");
  app->add_flag("--asymmetric", recipe.asymmetric,
                "Codes approximate what the float model computes from its own inputs, not from drifted ones");
  option("--damping", recipe.damping, "X",
         "Share of the mean diagonal added to the Hessian; raised by itself on failure. Default: 0.01; 1 with spqr");
  app->add_flag("--act-order", recipe.act_order, "Columns by descending input power; implies static groups");
  app->add_flag("--static-groups", recipe.static_groups, "Fit all grids on the original weights");
  app->add_flag("--one-pass", recipe.one_pass,
                "All statistics of a block from one pass over the unquantized block, as GPTQ's paper does");
  app->add_flag("--clip-search", recipe.grid.clip_search,
                "Search the range of each group for the least rounding error");
  option("--range-shrink", recipe.grid.range_shrink, "X", "Factor on each group's range")
      ->capture_default_str();
  option("--head-bits", recipe.head_bits, "N",
         "Also quantize the head (and the embedding tied to it); 0: leave it")
      ->capture_default_str();
  option("--override", options->overrides, "RULE",
         "REGEX=BITS[:GROUP] for modules whose name matches; repeatable");
  option("--skip", options->skips, "REGEX", "Leave modules whose name matches in float; repeatable");
  option("--calibration", options->calibration, "FILE", "Text file, or self: text sampled from the model")
      ->capture_default_str();
  option("--dataset", options->dataset, "NAME", "How the file becomes one text: text, wikitext2, ptb")
      ->capture_default_str();
  option("--samples", options->samples, "N", "Calibration sequences")->capture_default_str();
  option("--length", options->length, "N", "Tokens in each; 0: min(2048, the model's context)")
      ->capture_default_str();
  option("--seed", options->seed, "N", "Of the calibration sample")->capture_default_str();
  app->add_flag("--force", options->force, "Overwrite the output; quantize a quantized model again");
  app->add_flag("--dry-run", options->dry_run, "Only say what would come out");
  app->add_flag("--json", options->json, "Print the report as JSON");
  return {app, [options, &global] { quantize(*options, global); }};
}

}  // namespace ballast
