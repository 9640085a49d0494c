// How well a model predicts a text, and how far it is from a reference.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "engine/core/process.h"
#include "engine/evaluation/perplexity.h"
#include "engine/evaluation/text_data.h"
#include "engine/io/content_hash.h"
#include "engine/io/json.h"
#include "engine/io/packed.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/loaded_model.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t(4) << 30;

struct TextOptions {
  std::string model, reference, text, dataset = "text", protocol = "gptq", activations = "f32";
  std::optional<std::string> joined_by;
  PerplexityOptions measure;
  bool json = false;
};

void check_same_tokens(const TextOptions& options, const std::vector<int32_t>& sample,
                       const Tokenizer& model) {
  const auto reference = Tokenizer::open(options.reference);
  if (reference->vocabulary_size() != model.vocabulary_size())
    throw Error(str(options.reference, ": the reference's tokenizer has ", reference->vocabulary_size(),
                    " tokens, expected the model's ", model.vocabulary_size()));
  for (const int32_t id : sample)
    if (reference->token_bytes(id) != model.token_bytes(id))
      throw Error(str(options.reference, ": token ", id, " of the reference is ",
                      shown(reference->token_bytes(id)), ", expected the model's ",
                      shown(model.token_bytes(id))));
}

std::vector<std::filesystem::path> tokenizer_files(const std::string& folder) {
  std::vector<std::filesystem::path> files;
  for (const char* name : {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model",
                           "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"})
    if (const auto path = std::filesystem::path(folder) / name; std::filesystem::exists(path))
      files.push_back(path);
  return files;
}

// Where the measured model stands among others: what made it, and its bits per weight. Quantized folders that
// do not say get the bits of their codes, scales and zero points; float ones those of their matrices.
nlohmann::json provenance(const Checkpoint& checkpoint) {
  const std::string file = (checkpoint.folder() / "config.json").string();
  if (const auto packed = packed_config(checkpoint)) {
    nlohmann::json facts = {{"method", "gptq"}, {"bits", packed->bits}, {"group_size", packed->group_size}};
    facts["bits_per_weight"] =
        packed->bits + (packed->group_size > 0 ? (16.0 + packed->bits) / double(packed->group_size) : 0.0);
    if (const auto* quantization = json_find(checkpoint.config(), "quantization_config", file))
      if (const auto* meta = json_find(*quantization, "meta", file); meta && meta->is_object())
        for (const char* key :
             {"recipe", "method", "compensation", "correct_drift", "calibration", "bits_per_weight"})
          if (const auto found = meta->find(key); found != meta->end()) facts[key] = *found;
    return facts;
  }
  double bits = 0, weights = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (tensor.shape.size() != 2) continue;
    bits += 8 * double(tensor.bytes);
    weights += double(tensor.shape[0]) * double(tensor.shape[1]);
  }
  return {{"method", "float"}, {"bits_per_weight", weights > 0 ? bits / weights : 0}};
}

nlohmann::json json_of(const TextOptions& options, const PerplexityResult& result, const LoadedModel& model,
                       const std::string& data_hash, double seconds) {
  const nlohmann::json quantization = provenance(*model.checkpoint);
  nlohmann::json object = {{"model", options.model},
                           {"quantization", quantization},
                           {"bits_per_weight", quantization.at("bits_per_weight")},
                           {"perplexity", result.perplexity},
                           {"nll", result.nll},
                           {"tokens", result.tokens},
                           {"text_tokens", result.text_tokens},
                           {"windows", result.windows},
                           {"standard_error", result.standard_error},
                           {"nll_standard_error", result.nll_standard_error},
                           {"protocol", options.protocol},
                           {"dataset", options.dataset},
                           {"context", result.context},
                           {"activations", options.activations},
                           {"kv_cache_dtype", name_of(options.measure.cache_type)},
                           {"stride", result.stride},
                           {"first_window", options.measure.first_window},
                           {"window_nll", result.window_nll},
                           {"model_hash", hex(content_hash_of_files(model.checkpoint->files()))},
                           {"tokenizer_hash", hex(content_hash_of_files(tokenizer_files(options.model)))},
                           {"data_hash", data_hash},
                           {"seconds", seconds},
                           {"peak_memory_bytes", peak_memory_bytes()}};
  if (!result.reference) return object;
  const ReferenceComparison& against = *result.reference;
  object.update({{"reference", options.reference},
                 {"reference_perplexity", against.perplexity},
                 {"reference_nll", against.nll},
                 {"kl_mean", against.kl_mean},
                 {"kl_standard_error", against.kl_standard_error},
                 {"kl_median", against.kl_median},
                 {"kl_p90", against.kl_p90},
                 {"kl_p99", against.kl_p99},
                 {"kl_max", against.kl_max},
                 {"top1_agreement", against.top1_agreement},
                 {"rms_delta_p", against.rms_delta_p},
                 {"ln_perplexity_ratio", against.ln_perplexity_ratio}});
  return object;
}

std::string text_of(const TextOptions& options, const PerplexityResult& result) {
  std::string text = fmt::format("perplexity  {:.4f} ± {:.4f}\n", result.perplexity, result.standard_error);
  text += fmt::format("nll         {:.6f} ± {:.6f} nats a token\n", result.nll, result.nll_standard_error);
  text += fmt::format("measured    {}, protocol {}, {} windows of {}, {} targets\n", options.dataset,
                      options.protocol, result.windows, result.context, result.tokens);
  if (!result.reference) return text;
  const ReferenceComparison& against = *result.reference;
  text += fmt::format("\nagainst     {}, perplexity {:.4f}\n", options.reference, against.perplexity);
  text += fmt::format(
      "KL          mean {:.6f} ± {:.6f}, median {:.6f}, 90 % {:.6f}, 99 % {:.6f}, largest {:.6f}\n",
      against.kl_mean, against.kl_standard_error, against.kl_median, against.kl_p90, against.kl_p99,
      against.kl_max);
  text +=
      fmt::format("likeliest   the same token for {:.3f} % of the targets\n", 100 * against.top1_agreement);
  text += fmt::format("RMS Δp      {:.4f} %\n", 100 * against.rms_delta_p);
  text += fmt::format("ln ratio    {:+.6f} (of the perplexities)\n", against.ln_perplexity_ratio);
  return text;
}

std::string status_line(const PerplexityProgress& now, double seconds) {
  std::string line =
      fmt::format("[{}/{}] perplexity {:.4f}", now.windows_done, now.windows_total, now.perplexity);
  if (now.kl_mean) line += fmt::format(", KL {:.6f}", *now.kl_mean);
  const double left = seconds / double(now.windows_done) * double(now.windows_total - now.windows_done);
  return line + fmt::format(", {} left", human_seconds(left));
}

void measure(TextOptions& options, const GlobalOptions& global) {
  // What is quick to refuse comes before what is slow to load.
  options.measure.protocol = protocol_from(options.protocol);
  const Dataset dataset = dataset_from(options.dataset);
  const std::string raw = read_file(options.text, kMaxTextBytes);
  const std::string joined = join_rows(raw, dataset, options.joined_by);
  const auto backend = find_backend(global.backend_with(options.activations));
  LoadedModel model = load(options.model, *backend);
  check_interrupt();
  const std::vector<int32_t> ids = model.tokenizer->encode(joined);
  options.measure.bos_id = model.tokenizer->bos_id().value_or(-1);
  PerplexityOptions resolved = options.measure;
  plan_windows(int64_t(ids.size()), model.model->facts().max_positions, resolved);
  LoadedModel reference;
  if (!options.reference.empty()) {
    check_same_tokens(options, ids, *model.tokenizer);
    reference = load(options.reference, *backend, WithTokenizer::no);
  }
  spdlog::info("{}, {} tokens, loaded in {}", backend->description(), ids.size(),
               human_seconds(model.seconds + reference.seconds));
  Progress progress(global);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const PerplexityResult result = measure_perplexity(*backend, *model.model, reference.model.get(), ids,
                                                     options.measure, [&](const PerplexityProgress& now) {
                                                       progress.update(status_line(now, elapsed()));
                                                       check_interrupt();
                                                     });
  progress.finish();
  if (options.json) {
    print_json(json_of(options, result, model, hex(content_hash(raw)), elapsed()));
  } else {
    print(text_of(options, result));
  }
  spdlog::info("{} windows in {}, peak memory {}", result.windows, human_seconds(elapsed()),
               human_bytes(double(peak_memory_bytes())));
}

}  // namespace

Subcommand add_perplexity(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<TextOptions>();
  CLI::App* app = root.add_subcommand("perplexity", "Measure how well a model predicts a text");
  app->add_option("-m,--model", options->model, "Folder of the model")->required()->type_name("DIR");
  app->add_option("--text", options->text, "File with the text")->required()->type_name("FILE");
  app->add_option("--dataset", options->dataset, "How the file becomes one text: text, wikitext2 or ptb")
      ->type_name("NAME")
      ->capture_default_str();
  app->add_option("--rows-joined-by", options->joined_by,
                  "What stands between the rows of wikitext2 or ptb, instead of theirs")
      ->type_name("TEXT");
  app->add_option(
         "--protocol", options->protocol,
         "gptq: windows end to end, every target scored; llamacpp: the second half of each window scored")
      ->type_name("NAME")
      ->capture_default_str();
  const auto count = [&](const char* name, int64_t& value, const char* description) {
    app->add_option(name, value, description)
        ->type_name("N")
        ->check(CLI::Range(int64_t(0), int64_t(1) << 40));
  };
  count("--ctx", options->measure.context,
        "Tokens of a window [the model's positions, at most 2048; llamacpp 512]");
  count("--stride", options->measure.stride, "Tokens between window starts, gptq only [a window]");
  count("--chunks", options->measure.windows, "Windows to measure at most [all]");
  count("--from-chunk", options->measure.first_window, "Windows to leave out at the beginning");
  app->add_option(
         "--reference", options->reference,
         "Folder of a model to compare with on the same windows; its keys and values are kept in f32")
      ->type_name("DIR");
  add_activations_flag(*app, options->activations);
  add_cache_type_flag(*app, options->measure.cache_type);
  app->add_flag("--json", options->json, "Print one JSON object");
  return {app, [options, &global] { measure(*options, global); }};
}

}  // namespace ballast
