// ballast export: a quantized folder in another published layout, code for code.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <span>

#include "engine/io/activation_sites.h"
#include "engine/io/json.h"
#include "engine/io/quantized.h"
#include "models/weight_loader.h"
#include "tools/console.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

using nlohmann::json;

struct ExportOptions {
  std::string model, output, layout;
  bool drop_compensation = false, force = false, json = false;
};

constexpr std::pair<const char*, PackedLayout> kLayouts[] = {
    {"gptq", PackedLayout::gptq_v1},
    {"gptq_v2", PackedLayout::gptq_v2},
    {"compressed-tensors", PackedLayout::pack_quantized},
};

// What a module of each layout consists of, beside its bias.
constexpr const char* kModuleParts[] = {"qweight",           "qzeros",        "scales",       "g_idx",
                                        "weight_scale",      "weight_packed", "weight_shape", "weight_g_idx",
                                        "weight_zero_point", "bias"};
// Of one with half zero points, which is written with whole ones.
constexpr const char* kHalfZeroParts[] = {"weight", "weight_affine_grid", "weight_scale", "weight_half_zeros",
                                          "bias"};
// Entries of quantization_config that say where the codes came from, whatever their layout.
constexpr const char* kProvenance[] = {"meta", "static_groups", "true_sequential", "damp_percent"};

PackedLayout layout_named(const std::string& name) {
  for (const auto& [known, layout] : kLayouts)
    if (name == known) return layout;
  throw Error(fmt::format("--layout is \"{}\", expected gptq, gptq_v2 or compressed-tensors", name));
}

bool is_compensation(const std::string& tensor) {
  return tensor.ends_with(kCompensationSuffix) || tensor.ends_with(kPositionCompensationSuffix);
}

class Exporter {
 public:
  Exporter(const ExportOptions& options, const Checkpoint& source)
      : options_(options), source_(source), layout_(layout_named(options.layout)) {
    const auto config = packed_config(source);
    if (!config)
      throw Error(fmt::format("{}: is not quantized; `ballast quantize` makes of it what can be exported",
                              options.model));
    config_ = stored_ = *config;
    for (const std::string& encoding : config_.encodings) {
      if (encoding == kHalfZeros) continue;
      throw Error(fmt::format("{}: holds weights in the encoding {}, which has no published layout",
                              options.model, encoding));
    }
    if (!config_.encodings.empty()) config_.symmetric = false;
    for (PackedModule& module : packed_modules(source, config_)) modules_.emplace(module.name, module);
    if (modules_.empty()) throw Error(options.model + ": no module is stored in a quantized layout");
  }

  void check() const;
  json write(CheckpointWriter& writer);
  int64_t dropped() const { return dropped_; }

 private:
  void write_module(CheckpointWriter& writer, const PackedModule& module);
  void check_holds(const std::string& name, const AffineMatrix& matrix) const;
  int commonest_bits() const;
  json quantization_config() const;
  std::vector<std::string> float_linears() const;

  const ExportOptions& options_;
  const Checkpoint& source_;
  PackedLayout layout_;
  PackedConfig stored_, config_;  // of the source, of the output
  std::map<std::string, PackedModule> modules_;
  std::vector<PackedException> written_;  // what every module became
  int64_t dropped_ = 0, rounded_ = 0;
  double bits_ = 0, weights_ = 0;
};

/// Module and last part of a tensor's name.
std::pair<std::string, std::string> split(const std::string& tensor) {
  const size_t dot = tensor.rfind('.');
  if (dot == std::string::npos) return {"", tensor};
  return {tensor.substr(0, dot), tensor.substr(dot + 1)};
}

// Refusals that names alone can tell, before anything is written.
void Exporter::check() const {
  for (const auto& [name, module] : modules_)
    if (name.ends_with("embed_tokens"))
      throw Error(fmt::format(
          "{}: {} is quantized, and no reader of {} expects a quantized embedding table; quantize without "
          "--head-bits and --target-bits",
          options_.model, name, options_.layout));
  for (const StoredTensor& tensor : source_.tensors()) {
    const auto [module, part] = split(tensor.name);
    if (part == "weight" && tensor.dtype == "I32" && !modules_.contains(module))
      throw Error(fmt::format("{}: {} holds codes, but {} is missing", options_.model,
                              shown(tensor.name, 200), shown(module + ".weight_half_zeros", 200)));
    if (is_site_tensor(tensor.name))
      throw Error(
          fmt::format("{}: rounds activations at {}, for which {} has no place; quantize without "
                      "--activation-bits",
                      options_.model, shown(module, 200), options_.layout));
    if (is_compensation(tensor.name)) {
      if (options_.drop_compensation) continue;
      throw Error(fmt::format(
          "{}: {} has no place in {}, whose readers know biases only; --drop-compensation leaves such "
          "tensors out, at a loss of accuracy",
          options_.model, shown(tensor.name, 200), options_.layout));
    }
    const std::span<const char* const> parts = source_.find(module + ".weight_half_zeros")
                                                   ? std::span<const char* const>(kHalfZeroParts)
                                                   : kModuleParts;
    if (modules_.contains(module) && std::find(parts.begin(), parts.end(), part) == parts.end())
      throw Error(fmt::format("{}: {} belongs to an encoding that {} cannot hold", options_.model,
                              shown(tensor.name, 200), options_.layout));
  }
}

void Exporter::check_holds(const std::string& name, const AffineMatrix& matrix) const {
  if (!layout_holds(layout_, matrix.bits, matrix.out_features, matrix.in_features))
    throw Error(
        fmt::format("{}: {} cannot hold {} x {} weights of {} bits, both sizes times bits must divide by 32; "
                    "compressed-tensors can",
                    name, options_.layout, matrix.out_features, matrix.in_features, matrix.bits));
  const uint8_t middle = uint8_t(1 << (matrix.bits - 1));
  for (const uint8_t zero : matrix.zero_points) {
    if (layout_ == PackedLayout::gptq_v1 && zero == 0)
      throw Error(
          fmt::format("{}: has a zero point of 0, which gptq, storing zero points minus one, cannot "
                      "hold; gptq_v2 and compressed-tensors can",
                      name));
    if (config_.symmetric && zero != middle)
      throw Error(fmt::format("{}: quantization_config says symmetric, expected zero points of {}, got {}",
                              name, middle, zero));
  }
}

void Exporter::write_module(CheckpointWriter& writer, const PackedModule& module) {
  const AffineMatrix matrix = std::get<AffineMatrix>(read_quantized(source_, stored_, module.name,
                                                                    module.out_features, module.in_features))
                                  .with_whole_zeros();
  check_holds(module.name, matrix);
  write_packed(writer, module.name, matrix, layout_, config_.symmetric);
  const double weights = double(matrix.out_features) * double(matrix.in_features);
  weights_ += weights, bits_ += matrix.bits_per_weight() * weights;
  const bool per_row = matrix.group_size == matrix.in_features;
  const bool usual_group = config_.group_size == -1 ? per_row : matrix.group_size == config_.group_size;
  written_.push_back({module.name, layout_, matrix.bits,
                      usual_group ? config_.group_size
                      : per_row   ? -1
                                  : matrix.group_size});
  for (const char* part : {".scales", ".weight_scale"})
    if (const StoredTensor* scales = source_.find(module.name + part)) rounded_ += scales->dtype != "F16";
}

// Other readers take every linear module for quantized unless told otherwise. Which modules with a matrix are
// linear only their code knows; an embedding table too many does no harm.
std::vector<std::string> Exporter::float_linears() const {
  std::vector<std::string> names;
  const bool named_by_class = layout_ == PackedLayout::pack_quantized;
  // A head that is tied to the embedding has no tensor of its own.
  if (named_by_class && !modules_.contains("lm_head") && !source_.find("lm_head.weight"))
    names.push_back("lm_head");
  for (const StoredTensor& tensor : source_.tensors()) {
    const auto [module, part] = split(tensor.name);
    if (part == "weight" && tensor.shape.size() == 2 && module.find("embed") == std::string::npos &&
        !modules_.contains(module))
      names.push_back(module);
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Half zero points have made codes wider, not of all modules.
int Exporter::commonest_bits() const {
  std::map<int, int64_t> modules;
  for (const PackedException& module : written_) ++modules[module.bits];
  return std::max_element(modules.begin(), modules.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

json Exporter::quantization_config() const {
  PackedConfig config = config_;
  config.layout = layout_;
  std::vector<PackedException> exceptions;
  for (const PackedException& module : written_)
    if (module.bits != config.bits || module.group_size != config.group_size) exceptions.push_back(module);
  json object = packed_config_json(config, exceptions, float_linears());
  if (layout_ != PackedLayout::pack_quantized) object["lm_head"] = modules_.contains("lm_head");
  if (const json* before = json_find(source_.config(), "quantization_config", options_.model))
    for (const char* key : kProvenance)
      if (const auto entry = before->find(key); entry != before->end()) object[key] = *entry;
  // Codes may have become wider.
  if (const auto meta = object.find("meta"); meta != object.end() && meta->contains("bits_per_weight"))
    (*meta)["bits_per_weight"] = bits_ / weights_;
  return object;
}

// Tensors go out in the order of their names, so that the result does not depend on the order in the source.
json Exporter::write(CheckpointWriter& writer) {
  std::map<std::string, const StoredTensor*> others;
  for (const StoredTensor& tensor : source_.tensors()) {
    const auto [module, part] = split(tensor.name);
    if (is_compensation(tensor.name))
      ++dropped_;
    else if (!modules_.contains(module) || part == "bias")
      others.emplace(tensor.name, &tensor);
  }
  auto next = others.begin();
  const auto copy_until = [&](const std::string* name) {
    for (; next != others.end() && (!name || next->first < *name); ++next)
      writer.copy(source_, *next->second);
  };
  for (const auto& [name, module] : modules_) {
    check_interrupt();
    copy_until(&name);
    write_module(writer, module);
  }
  copy_until(nullptr);
  if (!config_.encodings.empty()) config_.bits = commonest_bits();
  writer.copy_side_files(source_.folder());
  const json quantization = quantization_config();
  json config = source_.config();
  config["quantization_config"] = quantization;
  if (layout_ != PackedLayout::pack_quantized)
    writer.add_file("quantize_config.json", quantization.dump(2) + "\n");
  const uint64_t bytes = writer.tensor_bytes();
  writer.finish(config);
  source_.check_intact();
  if (rounded_ > 0)
    spdlog::warn("the scales of {} modules were not binary16 and were rounded to it", rounded_);
  return {{"output", options_.output}, {"layout", options_.layout},   {"modules", modules_.size()},
          {"bits", config_.bits},      {"dropped_tensors", dropped_}, {"output_bytes", bytes}};
}

void export_folder(const ExportOptions& options) {
  (void)layout_named(options.layout);
  require_other_folder(options.model, options.output);
  const Checkpoint source = Checkpoint::open(options.model);
  for (const std::string& warning : source.warnings()) spdlog::warn(warning);
  Exporter exporter(options, source);
  exporter.check();
  CheckpointWriter writer(options.output, {.overwrite = options.force});
  const json result = exporter.write(writer);
  if (exporter.dropped() > 0)
    spdlog::warn("{} compensation tensors were left out: the exported model is less accurate than {}",
                 exporter.dropped(), options.model);
  if (options.json) return print_json(result);
  print(fmt::format("{}: {} modules as {}, {}\n", options.output, result["modules"].get<int64_t>(),
                    options.layout, human_bytes(result["output_bytes"].get<double>())));
}

}  // namespace

Subcommand add_export(CLI::App& root, const GlobalOptions&) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* app = root.add_subcommand("export",
                                      "Write a quantized model in another published layout; half zero points "
                                      "become whole ones, codes a bit wider");
  app->add_option("-m,--model", options->model, "Folder of the quantized model")
      ->required()
      ->type_name("DIR");
  app->add_option("-o,--output", options->output, "Folder to write")->required()->type_name("DIR");
  app->add_option("--layout", options->layout, "gptq, gptq_v2 or compressed-tensors (pack-quantized)")
      ->required()
      ->type_name("NAME");
  app->add_flag("--drop-compensation", options->drop_compensation,
                "Leave out compensation that no bias can hold (per position, of the head)");
  app->add_flag("--force", options->force, "Overwrite the output");
  app->add_flag("--json", options->json, "Print one JSON object");
  return {app, [options] { export_folder(*options); }};
}

}  // namespace ballast
