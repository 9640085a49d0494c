// ballast quantize: a float checkpoint in, a quantized one out.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>

#include "engine/evaluation/text_data.h"
#include "engine/io/content_hash.h"
#include "engine/io/json.h"
#include "engine/io/packed.h"
#include "models/registry.h"
#include "quantize/bit_allocation.h"
#include "quantize/quantizer.h"
#include "quantize/records.h"
#include "tools/calibration_images.h"
#include "tools/console.h"
#include "tools/recipe_flags.h"
#include "tools/report.h"
#include "tools/subcommand.h"
#include "tools/version.h"

namespace ballast {
namespace {

constexpr uint64_t kLargestText = uint64_t(4) << 30;

struct QuantizeOptions : RecipeFlags {
  std::string model, output, report;
  std::string calibration = "self", dataset = "text";
  int64_t samples = 128, length = 0, views = 1;
  uint64_t seed = 0;
  bool force = false, resume = false, dry_run = false, json = false;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void refuse_same_folder(const QuantizeOptions& options) {
  std::error_code ignored;
  if (std::filesystem::equivalent(options.model, options.output, ignored))
    throw Error(fmt::format("-o {}: is the model's own folder; writing there would destroy the source",
                            options.output));
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

struct Run {
  const QuantizeOptions& options;
  const GlobalOptions& global;
  const Recipe& recipe;
  const Checkpoint& checkpoint;
  Backend& backend;
  nn::Model& model;
  CheckpointWriter& writer;
  Journal& journal;
  int64_t length;
  const std::vector<std::filesystem::path>& images;  ///< to calibrate on; empty for text
};

CalibrationTokens stored_tokens(const std::string& bytes, int64_t vocab) {
  CalibrationTokens tokens = tokens_from_bytes(bytes, kTokensKey);
  for (const int32_t id : tokens.ids)
    if (id < 0 || id >= vocab) throw Error(fmt::format("{}: token {} of {}", kTokensKey, id, vocab));
  return tokens;
}

CalibrationTokens new_tokens(const Run& run, const Tokenizer& tokenizer) {
  const auto& [options, global, recipe, checkpoint, backend, model, writer, journal, length, images] = run;
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

// Kept, since sampling takes long and its result must not depend on when it was cut short.
CalibrationTokens calibration_tokens(const Run& run) {
  if (!run.images.empty())
    return calibration_from_images(run.checkpoint, run.model.facts(), run.backend, run.images,
                                   run.options.views, run.options.seed, run.options.calibration);
  if (const auto bytes = run.journal.find(kTokensKey)) return stored_tokens(*bytes, run.model.facts().vocab);
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(run.options.model);
  if (tokenizer->vocabulary_size() > run.model.facts().vocab)
    throw Error(fmt::format("{}: the tokenizer has {} ids, the model's embedding {} rows", run.options.model,
                            tokenizer->vocabulary_size(), run.model.facts().vocab));
  const CalibrationTokens tokens = new_tokens(run, *tokenizer);
  run.journal.append(kTokensKey, to_bytes(tokens));
  return tokens;
}

struct Outcome {
  QuantizeReport report;
  double calibration_seconds = 0;
  double widths_seconds = 0;  ///< choosing a width for every layer; 0: there was one for all
};

nlohmann::json json_of(const QuantizeOptions& options, const Outcome& outcome, const Checkpoint& source) {
  nlohmann::json json = outcome.report.json();
  uint64_t source_bytes = 0;
  for (const StoredTensor& tensor : source.tensors()) source_bytes += tensor.bytes;
  json.update({{"model", options.model},
               {"output", options.output},
               {"source_bytes", source_bytes},
               {"calibration_seconds", outcome.calibration_seconds},
               {"widths_seconds", outcome.widths_seconds}});
  return json;
}

void print_report(const QuantizeOptions& options, const Checkpoint& source, const Outcome& outcome) {
  const auto& [report, calibration_seconds, widths_seconds] = outcome;
  const nlohmann::json json = json_of(options, outcome, source);
  if (!options.report.empty()) write_report(options.report, {{json, options.output}});
  if (options.json) return print_json(json);
  print(report.table());
  print(fmt::format(
      "\n{}: {:.3f} bits per weight in {} modules, {} on disk, {} + {} calibration{}, peak memory {}\n",
      options.output, report.bits_per_weight(), report.layers.size(),
      human_bytes(double(report.output_bytes)), human_seconds(report.seconds),
      human_seconds(calibration_seconds),
      widths_seconds > 0 ? fmt::format(" + {} choosing widths", human_seconds(widths_seconds)) : "",
      human_bytes(double(report.peak_memory_bytes))));
}

// The recipe with a width for every layer. Kept, since it takes a pass forth and back through the model.
Recipe with_widths(const Run& run, const CalibrationTokens& tokens) {
  Recipe recipe = run.recipe;
  if (const auto bytes = run.journal.find(kWidthsKey)) {
    recipe.layer_bits = widths_from_bytes(*bytes, kWidthsKey);
  } else {
    Progress progress(run.global);
    recipe.layer_bits = choose_widths({.source = run.checkpoint,
                                       .backend = run.backend,
                                       .model = run.model,
                                       .tokens = tokens,
                                       .recipe = recipe,
                                       .progress = [&](int64_t done, int64_t all) {
                                         check_interrupt();
                                         progress.update(fmt::format("sensitivities: {} of {}", done, all));
                                       }});
    progress.finish();
    run.journal.append(kWidthsKey, to_bytes(recipe.layer_bits));
  }
  if (const auto head = recipe.layer_bits.find(run.model.lm_head().name); head != recipe.layer_bits.end())
    recipe.head_bits = head->second;
  return recipe;
}

Outcome calibrate_and_quantize(const Run& run) {
  const Clock::time_point begun = Clock::now();
  const CalibrationTokens tokens = calibration_tokens(run);
  const double calibration_seconds = seconds_since(begun);
  // GPTQ's rule of thumb: a second moment needs several times more rows than columns.
  if (tokens.samples * tokens.length < 2 * run.model.facts().ffn)
    spdlog::warn("{} calibration tokens are few for layers of {} inputs; expect damping to do the work",
                 tokens.samples * tokens.length, run.model.facts().ffn);
  const bool chosen = run.recipe.target_bits > 0;
  const Clock::time_point choosing = Clock::now();
  const Recipe recipe = chosen ? with_widths(run, tokens) : run.recipe;
  const double widths_seconds = chosen ? seconds_since(choosing) : 0;
  Progress progress(run.global);
  const Clock::time_point start = Clock::now();
  const QuantizeReport report =
      quantize_model({.source = run.checkpoint,
                      .backend = run.backend,
                      .model = run.model,
                      .recipe = recipe,
                      .tokens = tokens,
                      .writer = run.writer,
                      .journal = &run.journal,
                      .progress = [&](const QuantizeProgress& at) {
                        check_interrupt();
                        const double each =
                            seconds_since(start) / double(std::max<int64_t>(1, at.done - at.resumed));
                        progress.update(fmt::format("{} of {}: {}, {} left", at.done, at.total, at.module,
                                                    human_seconds(each * double(at.total - at.done))));
                      }});
  progress.finish();
  return {report, calibration_seconds, widths_seconds};
}

// All that the output's bytes depend on. Names of files do not count, their content does.
RunFingerprint fingerprint_of(const QuantizeOptions& options, const Recipe& recipe, const Checkpoint& source,
                              const Backend& backend, int64_t length,
                              const std::vector<std::filesystem::path>& images) {
  const bool self = options.calibration == "self";
  RunFingerprint fingerprint = {{"--samples", fmt::format("{}", options.samples)},
                                {"--length", fmt::format("{}", length)},
                                {"--seed", fmt::format("{}", options.seed)},
                                {"--calibration", self             ? "self"
                                                  : images.empty() ? "a text"
                                                                   : "images"},
                                {"--device", backend.device() == Device::cpu ? "cpu" : backend.description()},
                                {"this program", build_name()}};
  if (!images.empty()) {
    fingerprint["the calibration images"] = hex(content_hash_of_files(images));
    fingerprint["--views"] = fmt::format("{}", options.views);
  } else if (!self) {
    fingerprint["--dataset"] = options.dataset;
    fingerprint["the calibration text"] = hex(content_hash_of_files({options.calibration}));
  }
  add_recipe(fingerprint, recipe);
  add_model(fingerprint, source);
  return fingerprint;
}

// What the output folder's disk must still take, from an empty output on.
uint64_t space_needed(const QuantizePlan& plan, const Journal& journal) {
  const uint64_t kept = std::min(journal.bytes(), plan.journal_bytes);
  return plan.output_bytes + plan.journal_bytes - kept;
}

// Runs `work`; when it is cut short, says what is kept and how to go on.
template <class Work>
auto saying_what_is_kept(const QuantizeOptions& options, const QuantizePlan& plan, const Journal& journal,
                         const Work& work) {
  const auto kept = [&] {
    if (journal.count("") == 0) return std::string("nothing was finished");
    return fmt::format("{} of {} modules are kept in {}; the same command with --resume goes on from there",
                       journal.count(layer_key("")), plan.modules, options.output);
  };
  try {
    return work();
  } catch (const Interrupted&) {
    spdlog::warn("interrupted; {}", kept());
    throw;
  } catch (const RuntimeFailure& failure) {
    throw RuntimeFailure(fmt::format("{}; about {} of disk space are still needed; {}", failure.what(),
                                     human_bytes(1.05 * double(space_needed(plan, journal))), kept()));
  }
}

void quantize(QuantizeOptions options, const GlobalOptions& global) {
  if (options.output.empty() && !options.dry_run) throw Error("-o is missing: the folder to write to");
  if (options.samples < 1) throw Error(fmt::format("--samples is {}, expected 1 or more", options.samples));
  const Checkpoint checkpoint = Checkpoint::open(options.model);
  if (packed_config(checkpoint) && !options.force)
    throw Error(fmt::format("{}: is quantized already; --force quantizes what it decodes to", options.model));
  const std::unique_ptr<Backend> backend = find_backend(global.backend);
  const std::unique_ptr<nn::Model> model = load_model(checkpoint, *backend);
  const int64_t longest = model->facts().max_positions;
  const bool vision = model->facts().image.has_value();
  const Recipe recipe = finished_recipe(options, vision);
  const std::vector<std::filesystem::path> images =
      vision ? chosen_images(options.calibration, options.samples, options.given("--samples"), options.seed)
             : std::vector<std::filesystem::path>();
  if (!vision && recipe.activation_bits > 0)
    throw Error("--activation-bits is for image classifiers; of text models only weights are quantized");
  if (vision) options.samples = int64_t(images.size());
  if (vision && options.length > 0)
    throw Error("--length is for text; an image has as many tokens as the model makes of it");
  for (const char* flag : {"--views", "--class-weight"})
    if (!vision && options.given(flag))
      throw Error(fmt::format("{} is for images; this model reads text", flag));
  if (const auto named = chosen_recipe(options, vision); named && !options.given("--views"))
    options.views = named->views;
  if (options.views < 1 || options.views > 1000)
    throw Error(fmt::format("--views is {}, expected 1 to 1000", options.views));
  const int64_t length = vision               ? longest
                         : options.length > 0 ? options.length
                                              : std::min<int64_t>(2048, longest);
  if (length < 2 || length > longest)
    throw Error(fmt::format("--length is {}, expected 2 to the model's context, {}", length, longest));
  // Planned in any case: what cannot be quantized is refused before calibration takes its time.
  const QuantizePlan plan = plan_quantization(
      checkpoint, *model, recipe, vision ? options.samples * options.views : options.samples, length);
  for (const std::string& pattern : plan.unmatched)
    spdlog::warn("\"{}\" of --override or --skip matches no module", pattern);
  if (options.dry_run) return show_plan(options, plan, recipe);

  refuse_same_folder(options);
  if (!options.report.empty()) check_report_path(options.report);
  const auto found = options.resume  ? Journal::Found::resume
                     : options.force ? Journal::Found::discard
                                     : Journal::Found::refuse;
  Journal journal(options.output, fingerprint_of(options, recipe, checkpoint, *backend, length, images),
                  found);
  // What a run that goes on finds in the folder is its own unfinished output, or what it was to replace.
  CheckpointWriter writer(options.output, {.overwrite = options.force || journal.resumed()});
  writer.require_space(space_needed(plan, journal));
  if (!journal.damage().empty()) spdlog::warn("{}; it is done again from there", journal.damage());
  if (journal.resumed())
    spdlog::info("resumed, {} of {} modules done", journal.count(layer_key("")), plan.modules);
  else if (options.resume)
    spdlog::info("{}: nothing to resume, starting", options.output);
  const Outcome outcome = saying_what_is_kept(options, plan, journal, [&] {
    return calibrate_and_quantize(
        {options, global, recipe, checkpoint, *backend, *model, writer, journal, length, images});
  });
  journal.finish();
  print_report(options, checkpoint, outcome);
}

// Flags of single methods; Recipe::check refuses them with others.
void add_method_options(CLI::App& app, MethodOptions& method, std::string& scale_scope) {
  const auto option = [&app](const char* flag, auto& value, const char* type, const char* help) {
    return app.add_option(flag, value, help)->type_name(type);
  };
  option(
      "--sweeps", method.sweeps, "N",
      "comq, gptq: sweeps of coordinate descent over all codes; with gptq a polish. Default: 16 with comq, "
      "else 0");
  app.add_flag("--anneal,!--no-anneal", method.anneal,
               "6 sweeps or more begin with heavy damping that falls from sweep to sweep. Default: on");
  app.add_flag(
      "--greedy-order", method.greedy_order,
      "Sweeps take each row's weights by descending size times input power, as the paper does; slower");
  app.add_flag("--refit-scales,!--no-refit-scales", method.refit_scales,
               "Sweeps also refit scales, in closed form. Default: on");
  app.add_flag(
      "--unbiased-scales,!--no-unbiased-scales", method.unbiased_scales,
      "comq, gptq with sweeps, billm: in the end scale each output back to its full size, which least "
      "squares shrinks. Default: on");
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
  CLI::App* app =
      root.add_subcommand("quantize", "Quantize a model to 1, 2, 3, 4 or 8 bits, without training");
  const auto option = [app](const char* flag, auto& value, const char* type, const char* help) {
    return app->add_option(flag, value, help)->type_name(type);
  };
  option("-m,--model", options->model, "DIR", "Folder of the float model")->required();
  option("-o,--output", options->output, "DIR", "Folder to write");
  option("--bits", recipe.grid.bits, "N",
         "Bits per weight: 2, 3, 4, 6 (kept in 8) or 8; with billm 1, or left out");
  option("--activation-bits", recipe.activation_bits, "N",
         "Also round activations to 8, 6 or 4 bits (image classifiers): inputs of linear layers, both "
         "operands of "
         "attention's products; 0: they stay in float. The head then gets 8 bits")
      ->capture_default_str();
  app->add_flag("--fold-ranges,!--no-fold-ranges", recipe.fold_ranges,
                "With --activation-bits: where it helps, channels behind a norm are brought to one range, "
                "folded into the "
                "norm and the layers behind it. Default: on");
  app->add_flag(
      "--logarithms,!--no-logarithms", recipe.logarithms,
      "With --activation-bits: attention's probabilities may have logarithmic levels; without them only "
      "PTQ4ViT's twin ranges. Default: on");
  option("--target-bits", recipe.target_bits, "X",
         "Instead of --bits: stored bits per weight to meet on average, the head included, with widths of 2, "
         "3, 4 or 8 "
         "chosen layer by layer from the loss they are predicted to cost");
  option("--group-size", recipe.grid.group_size, "N",
         "Columns that share a scale; 0: the whole row. Default: 0; 16 with spqr");
  app->add_flag("--symmetric", recipe.grid.symmetric, "Zero point in the middle of the codes");
  option(
      "--zero-points", options->zero_points, "NAME",
      "whole, or half: also halfway between two codes (2, 3 and 4 bits), as long and more accurate, most of "
      "all at 2 "
      "bits; other programs read what export makes of it. Default: with a recipe half at 2 bits, else whole");
  options->given = [app](const char* flag) { return app->count(flag) > 0; };
  option("--recipe", options->name, "NAME",
         "Choices that go together; flags change parts. fast: gptq on centred inputs, biases compensated, "
         "ranges shrunk. "
         "balanced: also targets and biases that make up for drift, about three times as long. best: then "
         "scales "
         "and biases "
         "tuned towards the float model (not with --activation-bits) and more views of images, about ten "
         "times. Default: balanced, "
         "or none where --method is given");
  option("--method", recipe.method, "NAME",
         "rtn: round to nearest; gptq: error feedback; comq: coordinate descent; spqr: small groups whose "
         "scales "
         "are quantized too, outliers in 16 bits; billm: signs with scales per row and block")
      ->capture_default_str();
  add_method_options(*app, recipe.options, options->scale_scope);
  option("--compensate", options->compensation, "NAME",
         "none; channel: mean output error into the bias; joint: codes for centred inputs, then channel; "
         "token: joint, "
         "with the first token, the class token of an image, apart; position: channel plus a vector per "
         "position. Default: "
         "token with --activation-bits, else channel with rtn, joint with the others");
  // A plain flag on an optional would be set to false where the flag is absent.
  app->add_flag_function(
      "--correct-drift,!--no-correct-drift", [options](int64_t count) { options->correct_drift = count > 0; },
      "Biases also take out the mean shift left by earlier layers. Default: on, off with rtn");
  app->add_option_function<std::string>(
         "--curvature",
         [options](const std::string& name) { options->recipe.curvature = curvature_named(name); },
         "What an error costs: activation (the layer's output error), output-adaptive (OAC) or guided, from "
         "gradients of the loss")
      ->type_name("NAME")
      ->default_str("activation");
  option("--curvature-groups", recipe.curvature_groups, "N",
         "guided: runs of rows with a curvature of their own, at most")
      ->capture_default_str();
  option("--tune", recipe.tune_epochs, "N",
         "In the end move scales and biases together towards the float model, N passes over the calibration "
         "text")
      ->capture_default_str();
  option("--tune-codes", recipe.tune_codes, "X",
         "With --tune also move codes, by X of a code in a step at first; 0: codes stay; for more "
         "calibration text than the default")
      ->capture_default_str();
  option("--tune-hidden", recipe.tune_hidden, "X",
         "With --tune: how much every token's distance from the float model's hidden states counts beside "
         "that of the "
         "logits. Default: 5 with best of images, else 0");
  app->add_flag("--asymmetric,!--no-asymmetric", recipe.asymmetric,
                "Codes approximate what the float model computes from its own inputs, not from drifted ones");
  option("--gptaq", recipe.gptaq, "X",
         "gptq: each column's feedback also makes up for what drift of the inputs makes of it, times X, 0 to "
         "1 (GPTAQ; 1 "
         "in its paper, 0.25 in its code), instead of --asymmetric")
      ->capture_default_str();
  option("--damping", recipe.damping, "X",
         "Share of the mean diagonal added to the Hessian; raised by itself on failure. Default: 0.01");
  app->add_flag("--act-order,!--no-act-order", recipe.act_order,
                "Columns by descending input power; implies static groups");
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
  option("--calibration", options->calibration, "FILE",
         "Text file, or self: text sampled from the model. For an image classifier, a list of images")
      ->capture_default_str();
  option("--dataset", options->dataset, "NAME", "How the file becomes one text: text, wikitext2, ptb")
      ->capture_default_str();
  option("--samples", options->samples, "N", "Calibration sequences or images")->capture_default_str();
  option("--class-weight", options->recipe.class_weight, "N",
         "Of an image classifier, the token that the answer is read from counts as N. Default: 50 with "
         "balanced and best, "
         "else 1");
  option("--views", options->views, "N",
         "Random views of each calibration image, the image as it is among them. Default: the recipe's, 2 "
         "with balanced, 4 "
         "with best, else 1");
  option("--length", options->length, "N", "Tokens in each; 0: min(2048, the model's context)")
      ->capture_default_str();
  option("--seed", options->seed, "N", "Of the calibration sample")->capture_default_str();
  app->add_flag("--resume", options->resume, "Go on with the unfinished run in the output folder");
  app->add_flag("--force", options->force,
                "Overwrite the output or an unfinished run; quantize a quantized model again");
  app->add_flag("--dry-run", options->dry_run, "Only say what would come out");
  option("--report", options->report, "FILE", "Also write an HTML page with charts of every layer");
  app->add_flag("--json", options->json, "Print the report as JSON");
  return {app, [options, &global] { quantize(*options, global); }};
}

}  // namespace ballast
