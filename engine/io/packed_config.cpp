// quantization_config, read and written.
#include <cstdio>
#include <filesystem>
#include <map>

#include "engine/io/json.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

using nlohmann::json;

constexpr int64_t kMaxGroup = int64_t(1) << 31;
constexpr int64_t kBallastVersion = 1;

int read_bits(const json& object, const char* key, const std::string& what) {
  const int64_t bits = json_int(object, key, what, 1, 64);
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    throw Error(str(what, ": field '", key, "': expected 2, 3, 4 or 8, got ", bits));
  return int(bits);
}

int64_t check_group(int64_t group_size, const std::string& what) {
  if (group_size == 0) throw Error(what + ": field 'group_size': expected -1 or at least 1, got 0");
  return group_size;
}

PackedConfig parse_gptq(const json& object, const std::string& what) {
  PackedConfig config;
  config.bits = read_bits(object, "bits", what);
  config.group_size = check_group(json_int(object, "group_size", what, -1, kMaxGroup, -1), what);
  config.symmetric = json_bool(object, "sym", what, true);
  (void)json_bool(object, "desc_act", what, false);  // whether columns are permuted is seen in g_idx itself
  const std::string older = json_string(object, "checkpoint_format", what, "");
  const std::string format = json_string(object, "format", what, older.empty() ? "gptq" : older);
  if (!older.empty() && older != format)
    throw Error(str(what, ": checkpoint_format ", shown(older), " contradicts format ", shown(format)));
  if (format != "gptq" && format != "gptq_v2")
    throw Error(
        str(what, ": field 'checkpoint_format': expected \"gptq\" or \"gptq_v2\", got ", shown(format)));
  config.layout = format == "gptq" ? PackedLayout::gptq_v1 : PackedLayout::gptq_v2;
  const std::string words = json_string(object, "pack_dtype", what, "int32");
  if (words != "int32" && words != "torch.int32")
    throw Error(str(what, ": field 'pack_dtype': expected \"int32\", got ", shown(words)));
  if (const json* dynamic = json_find(object, "dynamic", what)) {
    if (!dynamic->is_object())
      throw Error(str(what, ": field 'dynamic': expected an object, got ", shown_json(*dynamic)));
    // The patterns are not evaluated: a module's tensors tell its bits and group size. "-:" leaves a module in
    // float.
    for (const auto& [pattern, values] : dynamic->items())
      config.mixed = config.mixed || !pattern.starts_with("-:");
  }
  return config;
}

/// One entry of config_groups.
PackedConfig parse_group(const json& group, const std::string& what) {
  const std::string format = json_string(group, "format", what, "pack-quantized");
  if (format != "pack-quantized")
    throw Error(str(what, ": field 'format': expected \"pack-quantized\", got ", shown(format)));
  for (const char* key : {"input_activations", "output_activations"})
    if (const json* activations = json_find(group, key, what); activations && !activations->empty())
      throw Error(str(what, ": field '", key,
                      "': expected null (activations are not quantized by this format), got ",
                      shown_json(*activations)));
  const json& weights = json_object(group, "weights", what);
  const std::string type = json_string(weights, "type", what, "int");
  if (type != "int") throw Error(str(what, ": field 'type': expected \"int\", got ", shown(type)));
  PackedConfig config{.layout = PackedLayout::pack_quantized};
  config.bits = read_bits(weights, "num_bits", what);
  config.symmetric = json_bool(weights, "symmetric", what, true);
  const json* size = json_find(weights, "group_size", what);
  config.group_size = size ? check_group(json_int(weights, "group_size", what, -1, kMaxGroup), what) : -1;
  const std::string strategy =
      json_string(weights, "strategy", what, config.group_size == -1 ? "channel" : "group");
  if (strategy != "group" && strategy != "channel")
    throw Error(str(what, ": field 'strategy': expected \"group\" or \"channel\", got ", shown(strategy)));
  if ((strategy == "group") != (config.group_size != -1))
    throw Error(str(what, ": strategy ", shown(strategy), " contradicts group_size ", config.group_size));
  return config;
}

PackedConfig parse_compressed_tensors(const json& object, const std::string& what) {
  const std::string format = json_string(object, "format", what);
  if (format != "pack-quantized")
    throw Error(str(what, ": field 'format': expected \"pack-quantized\", got ", shown(format)));
  const json& groups = json_object(object, "config_groups", what);
  if (groups.empty()) throw Error(what + ": field 'config_groups': expected at least one group, got none");
  std::optional<PackedConfig> config;
  for (const auto& [name, group] : groups.items()) {
    const PackedConfig one = parse_group(group, what + ": config_groups: " + shown(name));
    if (!config) config = one;
  }
  config->mixed = groups.size() > 1;
  int major = 0, minor = 0;
  const std::string version = json_string(object, "version", what, "");
  if (std::sscanf(version.c_str(), "%3d.%3d", &major, &minor) == 2)
    config->older_3_bit = major == 0 && minor < 18;
  return *config;
}

PackedConfig parse_ballast(const json& object, const std::string& what) {
  const int64_t version = json_int(object, "version", what, 0, kMaxGroup);
  if (version != kBallastVersion)
    throw Error(str(what, ": field 'version': expected ", kBallastVersion, ", got ", version,
                    "; another version of this program wrote the folder"));
  PackedConfig config{.layout = PackedLayout::ballast};
  for (const json& encoding : json_array(object, "encodings", what)) {
    if (encoding != kHalfZeros && encoding != kSparseOutliers && encoding != kResidualBinary)
      throw Error(str(what, ": field 'encodings': expected \"", kHalfZeros, "\", \"", kSparseOutliers,
                      "\" or \"", kResidualBinary, "\", got ", shown_json(encoding)));
    config.encodings.push_back(encoding);
  }
  config.bits = int(json_int(object, "bits", what, 1, 8));
  config.group_size = check_group(json_int(object, "group_size", what, -1, kMaxGroup, -1), what);
  config.symmetric = json_bool(object, "sym", what, false);
  config.mixed = true;
  return config;
}

json ballast_json(const PackedConfig& config, const std::vector<std::string>& ignored) {
  return {{"quant_method", "ballast"},
          {"version", kBallastVersion},
          {"encodings", config.encodings},
          {"bits", config.bits},
          {"group_size", config.group_size},
          {"sym", config.symmetric},
          {"lm_head", false},
          {"ignore", ignored}};
}

/// "model.layers.0.fc1" as a regular expression that matches this name alone.
std::string exact_pattern(const std::string& module) {
  std::string out = "^";
  for (char c : module) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out + "$";
}

json group_json(int bits, int64_t group_size, bool symmetric, const json& targets) {
  const bool whole_rows = group_size == -1;
  return {{"targets", targets},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"weights",
           {{"num_bits", bits},
            {"type", "int"},
            {"symmetric", symmetric},
            {"strategy", whole_rows ? "channel" : "group"},
            {"group_size", whole_rows ? json(nullptr) : json(group_size)},
            {"dynamic", false},
            {"actorder", nullptr},
            {"block_structure", nullptr},
            {"observer", "minmax"},
            {"observer_kwargs", json::object()}}}};
}

json compressed_tensors_json(const PackedConfig& config, const std::vector<PackedException>& exceptions,
                             const std::vector<std::string>& ignored) {
  json groups = json::object();
  groups["group_0"] = group_json(config.bits, config.group_size, config.symmetric, json::array({"Linear"}));
  std::map<std::pair<int, int64_t>, json> others;
  for (const PackedException& other : exceptions)
    others[{other.bits, other.group_size}].push_back(other.module);
  for (const auto& [format, targets] : others)
    groups[str("group_", groups.size())] = group_json(format.first, format.second, config.symmetric, targets);
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"version", "0.18.0"},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"kv_cache_scheme", nullptr},
          {"ignore", ignored},
          {"config_groups", groups}};
}

/// The configuration and its place, from config.json or an older folder's quantize_config.json.
std::optional<std::pair<json, std::string>> find_config(const Checkpoint& checkpoint) {
  const std::string config = (checkpoint.folder() / "config.json").string();
  if (const json* found = json_find(checkpoint.config(), "quantization_config", config))
    return std::pair(*found, config + ": quantization_config");
  const std::filesystem::path older = checkpoint.folder() / "quantize_config.json";
  std::error_code error;
  if (!std::filesystem::exists(older, error)) return std::nullopt;
  json parsed = parse_json(read_file(older, uint64_t(1) << 20), older.string());
  if (parsed.is_object() && !parsed.contains("quant_method")) parsed["quant_method"] = "gptq";
  return std::pair(std::move(parsed), older.string());
}

PackedConfig parse_method(const json& object, const std::string& what) {
  const std::string method = json_string(object, "quant_method", what);
  if (method == "gptq") return parse_gptq(object, what);
  if (method == "compressed-tensors") return parse_compressed_tensors(object, what);
  if (method == "ballast") return parse_ballast(object, what);
  throw Error(str(what,
                  ": field 'quant_method': expected \"gptq\", \"compressed-tensors\" or \"ballast\", got ",
                  shown(method)));
}

/// Only ours: what others keep in `meta` is not looked at.
std::map<std::string, double> parse_zero_inputs(const json& object, const std::string& what) {
  std::map<std::string, double> out;
  const auto meta = object.find("meta");
  if (meta == object.end() || !meta->is_object()) return out;
  const auto shares = meta->find(kZeroInputs);
  if (shares == meta->end()) return out;
  if (!shares->is_object())
    throw Error(str(what, ": field 'meta.zero_inputs': expected an object, got ", shown_json(*shares)));
  for (const auto& [module, share] : shares->items()) {
    if (!share.is_number() || !(share.get<double>() >= 0) || share.get<double>() > 1)
      throw Error(
          str(what, ": field 'meta.zero_inputs': expected shares of 0 to 1, got ", shown_json(share)));
    out[module] = share;
  }
  return out;
}

}  // namespace

std::optional<PackedConfig> parse_packed_config(const json& object, const std::string& what) {
  if (object.is_null()) return std::nullopt;
  PackedConfig config = parse_method(object, what);
  config.zero_inputs = parse_zero_inputs(object, what);
  return config;
}

std::optional<PackedConfig> packed_config(const Checkpoint& checkpoint) {
  const auto found = find_config(checkpoint);
  if (!found) return std::nullopt;
  std::optional<PackedConfig> config = parse_packed_config(found->first, found->second);
  if (!config || config->layout == PackedLayout::pack_quantized || config->mixed) return config;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (!tensor.name.ends_with(".qzeros") || tensor.dtype != "I32" || tensor.shape.size() != 2) continue;
    const PackedLayout label = config->layout;
    config->layout = gptq_version(checkpoint, tensor, config->bits, config->symmetric, label);
    config->mislabeled = config->layout != label;
    break;
  }
  return config;
}

json packed_config_json(const PackedConfig& config, const std::vector<PackedException>& exceptions,
                        const std::vector<std::string>& ignored) {
  if (config.layout == PackedLayout::pack_quantized)
    return compressed_tensors_json(config, exceptions, ignored);
  if (config.layout == PackedLayout::ballast) return ballast_json(config, ignored);
  json out = {{"quant_method", "gptq"},
              {"bits", config.bits},
              {"group_size", config.group_size},
              {"desc_act", false},
              {"sym", config.symmetric},
              {"lm_head", false},
              {"pack_dtype", "int32"},
              {"checkpoint_format", config.layout == PackedLayout::gptq_v1 ? "gptq" : "gptq_v2"}};
  for (const PackedException& other : exceptions) {
    json& entry = out["dynamic"]["+:" + exact_pattern(other.module)];
    entry = {{"bits", other.bits}, {"group_size", other.group_size}};
    if (other.layout == PackedLayout::pack_quantized) entry["format"] = "pack-quantized";
  }
  for (const std::string& module : ignored) out["dynamic"]["-:" + exact_pattern(module)] = json::object();
  return out;
}

}  // namespace ballast
