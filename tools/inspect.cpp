// What is in a checkpoint: tensors, encodings, bits per weight, sizes.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <map>

#include "engine/io/json.h"
#include "engine/runtime/kv_cache.h"
#include "models/registry.h"
#include "tools/console.h"
#include "tools/model_summary.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

struct InspectOptions {
  std::string folder;
  bool all_tensors = false, check = false, json = false;
};

ModelSummary summarize(const Checkpoint& checkpoint, Backend& backend) {
  const auto model = load_model(checkpoint, backend);
  ModelSummary summary{.facts = model->facts(), .tied = model->tied_head()};
  for (int64_t index = 0; index < model->facts().layers; ++index) {
    summary.add_block(model->block(index));
    model->unload_block(index);  // one at a time, so that any model can be looked at
    check_interrupt();
  }
  summary.add_outside(*model);
  return summary;
}

/// A float tensor with values that no model should have.
struct BadTensor {
  std::string name;
  int64_t nan = 0, infinite = 0, first = -1;
};

std::vector<BadTensor> find_bad(const Checkpoint& checkpoint) {
  std::vector<BadTensor> bad;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") continue;
    BadTensor found{.name = tensor.name};
    const std::vector<float> values = checkpoint.floats(tensor);
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isfinite(values[i])) continue;
      ++(std::isnan(values[i]) ? found.nan : found.infinite);
      if (found.first < 0) found.first = int64_t(i);
    }
    if (found.first >= 0) bad.push_back(found);
    checkpoint.release(tensor);
    check_interrupt();
  }
  return bad;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// "layers.7.fc1" -> "layers.*.fc1": tensors that differ in their layer only share a line.
std::string pattern_of(const std::string& name) {
  std::string pattern;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    pattern += (begin > 0 ? "." : "") + (number ? "*" : part);
    begin = end + 1;
  }
  return pattern;
}

/// Tensors on one line of the list.
struct TensorLine {
  std::string name, dtype, shape;
  int64_t count = 0;
  uint64_t bytes = 0;
};

std::string tensor_list(const Checkpoint& checkpoint, bool all) {
  std::vector<TensorLine> lines;
  std::map<std::string, size_t> known;
  size_t widest = 0, widest_shape = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const std::string name = all ? tensor.name : pattern_of(tensor.name);
    const std::string shape = shape_text(tensor.shape);
    const auto [at, added] = known.try_emplace(name + tensor.dtype + shape, lines.size());
    if (added) lines.push_back({name, tensor.dtype, shape});
    ++lines[at->second].count;
    lines[at->second].bytes += tensor.bytes;
    widest = std::max(widest, name.size());
    widest_shape = std::max(widest_shape, shape.size());
  }
  std::string text;
  for (const TensorLine& line : lines)
    text += fmt::format("  {:<{}}  {:<4}  {:<{}}  {:>4}  {:>9}\n", line.name, widest, line.dtype, line.shape,
                        widest_shape, line.count > 1 ? fmt::format("×{}", line.count) : "",
                        human_bytes(double(line.bytes)));
  return text;
}

std::string text_of(const Checkpoint& checkpoint, const ModelSummary& model, const InspectOptions& options) {
  const nn::ModelFacts& facts = model.facts;
  std::string text = fmt::format(
      "model       {}: {} layers, width {}, {} heads, feed-forward {}, vocabulary {}, {} positions\n",
      facts.architecture, facts.layers, facts.hidden, facts.heads, facts.ffn, facts.vocab,
      facts.max_positions);
  text +=
      fmt::format("tensors     {} in {} file{}, {}\n", checkpoint.tensors().size(), checkpoint.files().size(),
                  checkpoint.files().size() == 1 ? "" : "s", human_bytes(double(tensor_bytes(checkpoint))));
  text += fmt::format("blocks      {:.3f} bits per weight: {}\n", model.block_bits(),
                      encodings_text(model.blocks));
  text +=
      fmt::format("whole       {:.3f} bits per weight, with the {} head{}\n", model.model_bits(),
                  model.tied ? "tied" : "separate", model.outside.size() > 1 ? " and the projections" : "");
  if (!facts.image)
    text += fmt::format("cache       {} a position, {} in int8\n",
                        human_bytes(double(KvCache::position_bytes(facts, CacheType::f32))),
                        human_bytes(double(KvCache::position_bytes(facts, CacheType::int8))));
  if (!model.sites.empty()) text += fmt::format("activations {}\n", sites_text(model.sites));
  if (model.outlier_share() > 0)
    text += fmt::format("outliers    {:.3f} % of the weights beside them\n", 100 * model.outlier_share());
  if (const auto* quantization = json_find(checkpoint.config(), "quantization_config", "config.json")) {
    nlohmann::json brief = *quantization;  // hundreds of sites have a line of their own
    if (brief.is_object() && brief.contains("activations")) brief["activations"].erase("sites");
    text += fmt::format("quantized   {}\n", brief.dump());
  }
  return text + "\n" + tensor_list(checkpoint, options.all_tensors);
}

nlohmann::json json_of(const Checkpoint& checkpoint, const ModelSummary& model) {
  const nn::ModelFacts& facts = model.facts;
  nlohmann::json object = {{"architecture", facts.architecture},
                           {"layers", facts.layers},
                           {"hidden", facts.hidden},
                           {"heads", facts.heads},
                           {"ffn", facts.ffn},
                           {"vocab", facts.vocab},
                           {"max_positions", facts.max_positions},
                           {"tied_head", model.tied},
                           {"bytes", tensor_bytes(checkpoint)},
                           {"block_bits_per_weight", model.block_bits()},
                           {"bits_per_weight", model.model_bits()},
                           {"outlier_share", model.outlier_share()}};
  const auto* quantization = json_find(checkpoint.config(), "quantization_config", "config.json");
  object["quantization_config"] = quantization ? *quantization : nlohmann::json(nullptr);
  if (!facts.image)
    for (const CacheType type : {CacheType::f32, CacheType::int8})
      object["kv_cache_bytes_per_position"][std::string(name_of(type))] =
          KvCache::position_bytes(facts, type);
  object["linears"] = nlohmann::json::array();
  for (const auto* group : {&model.blocks, &model.outside})
    for (const LayerFacts& layer : *group) {
      object["linears"].push_back({{"name", layer.name},
                                   {"encoding", layer.encoding},
                                   {"out_features", layer.out_features},
                                   {"in_features", layer.in_features},
                                   {"bits_per_weight", layer.bits}});
      if (layer.outliers >= 0)
        object["linears"].back()["outlier_share"] = double(layer.outliers) / layer.weights();
    }
  object["activation_sites"] = nlohmann::json::array();
  for (const SiteFacts& site : model.sites)
    object["activation_sites"].push_back({{"name", site.name},
                                          {"grid", name_of(site.grid.kind)},
                                          {"bits", site.grid.bits},
                                          {"step", site.grid.step},
                                          {"zero_point", site.grid.zero_point},
                                          {"shift", site.grid.shift},
                                          {"per_octave", site.grid.per_octave},
                                          {"execution", site.integers ? "integers" : "decoded"}});
  object["tensors"] = nlohmann::json::array();
  for (const StoredTensor& tensor : checkpoint.tensors())
    object["tensors"].push_back({{"name", tensor.name},
                                 {"dtype", tensor.dtype},
                                 {"shape", tensor.shape},
                                 {"bytes", tensor.bytes},
                                 {"file", checkpoint.files()[size_t(tensor.file)].filename().string()}});
  return object;
}

void inspect(const InspectOptions& options, const GlobalOptions& global) {
  const Checkpoint checkpoint = Checkpoint::open(options.folder);
  const auto backend = find_backend({.device = "cpu", .threads = global.backend.threads});
  // Before the model, which a bad value may keep from loading.
  const std::vector<BadTensor> bad = options.check ? find_bad(checkpoint) : std::vector<BadTensor>();
  for (const BadTensor& tensor : bad)
    spdlog::error("{}: {} NaN, {} infinite, the first at element {}", tensor.name, tensor.nan,
                  tensor.infinite, tensor.first);
  const ModelSummary model = summarize(checkpoint, *backend);
  if (options.json) {
    nlohmann::json object = json_of(checkpoint, model);
    if (options.check) {
      object["bad_tensors"] = nlohmann::json::array();
      for (const BadTensor& tensor : bad)
        object["bad_tensors"].push_back({{"name", tensor.name},
                                         {"nan", tensor.nan},
                                         {"infinite", tensor.infinite},
                                         {"first", tensor.first}});
    }
    print_json(object);
  } else {
    print(text_of(checkpoint, model, options));
    if (options.check && bad.empty()) print("\nEvery value of every float tensor is finite.\n");
  }
  if (!bad.empty())
    throw Error(str(options.folder, ": ", bad.size(), " tensors hold NaN or infinite values"));
}

}  // namespace

Subcommand add_inspect(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* app = root.add_subcommand("inspect", "Show what is in a checkpoint");
  app->add_option("folder", options->folder, "Folder of the model")->required()->type_name("DIR");
  app->add_flag("--tensors", options->all_tensors, "List every tensor instead of one line for all layers");
  app->add_flag("--check-tensors", options->check,
                "Look for NaN and infinite values; exit status 2 when there are any");
  app->add_flag("--json", options->json, "Print one JSON object");
  return {app, [options, &global] { inspect(*options, global); }};
}

}  // namespace ballast
