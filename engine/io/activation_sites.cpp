#include "engine/io/activation_sites.h"

#include "engine/io/json.h"

namespace ballast {
namespace {

using nlohmann::json;

constexpr int64_t kVersion = 1;
constexpr const char* kStep = ".scale";

ActivationGrid parse_grid(const json& object, const std::string& what) {
  const std::string name = json_string(object, "grid", what);
  const auto kind = activation_kind(name);
  if (!kind)
    throw Error(
        str(what, ": field 'grid': expected \"affine\", \"twin_sign\", \"twin_size\" or \"logarithm\", got ",
            shown(name)));
  ActivationGrid grid{.kind = *kind, .bits = int(json_int(object, "bits", what, 2, 8))};
  switch (grid.kind) {
    case ActivationGrid::Kind::affine:
      grid.zero_point = int(json_int(object, "zero_point", what, 0, grid.levels() - 1));
      break;
    case ActivationGrid::Kind::logarithm:
      grid.per_octave = int(json_int(object, "per_octave", what, 1, 2));
      break;
    default:
      grid.shift = int(json_int(object, "shift", what, 0, ActivationGrid::kMaxShift));
  }
  return grid;
}

json grid_json(const ActivationGrid& grid) {
  json object = {{"grid", name_of(grid.kind)}, {"bits", grid.bits}};
  if (grid.kind == ActivationGrid::Kind::affine)
    object["zero_point"] = grid.zero_point;
  else if (grid.kind == ActivationGrid::Kind::logarithm)
    object["per_octave"] = grid.per_octave;
  else
    object["shift"] = grid.shift;
  return object;
}

}  // namespace

bool is_site_tensor(const std::string& tensor) {
  for (const char* place : {".input", ".output", ".probabilities"})
    if (tensor.ends_with(std::string(place) + kStep)) return true;
  return false;
}

ActivationSites read_activation_sites(const Checkpoint& checkpoint) {
  const std::string file = (checkpoint.folder() / "config.json").string();
  ActivationSites sites;
  if (const json* config = json_find(checkpoint.config(), "quantization_config", file);
      config && config->is_object())
    if (const json* found = json_find(*config, "activations", file + ": quantization_config")) {
      const std::string what = file + ": quantization_config: activations";
      if (!found->is_object()) throw Error(str(what, ": expected an object, got ", shown_json(*found)));
      const int64_t version = json_int(*found, "version", what, 0, 1 << 20);
      if (version != kVersion)
        throw Error(str(what, ": field 'version': expected ", kVersion, ", got ", version,
                        "; another version of this program wrote the folder"));
      for (const auto& [name, object] : json_object(*found, "sites", what).items()) {
        const std::string site = what + ": " + shown(name, 200);
        if (!object.is_object()) throw Error(str(site, ": expected an object, got ", shown_json(object)));
        if (!is_site_tensor(name + kStep)) throw Error(site + ": is not the name of an activation site");
        ActivationGrid grid = parse_grid(object, site);
        const TensorView step = checkpoint.weight(name + kStep, {1});
        if (step.dtype != DType::f32)
          throw Error(
              str(checkpoint.folder().string(), ": tensor ", shown(name + kStep, 200), ": expected F32"));
        grid.step = checkpoint.floats(checkpoint.require(name + kStep)).front();
        grid.check(checkpoint.folder().string() + ": activation site " + shown(name, 200));
        sites[name] = grid;
      }
    }
  for (const StoredTensor& tensor : checkpoint.tensors())
    if (is_site_tensor(tensor.name) && !sites.count(tensor.name.substr(0, tensor.name.rfind('.'))))
      throw Error(str(file, ": quantization_config says nothing of the activation site whose tensor is ",
                      shown(tensor.name, 200)));
  return sites;
}

json write_activation_sites(CheckpointWriter& writer, const ActivationSites& sites, int bits) {
  json objects = json::object();
  for (const auto& [name, grid] : sites) {
    grid.check(name);
    writer.add(name + kStep, "F32", {1}, &grid.step);
    objects[name] = grid_json(grid);
  }
  return {{"version", kVersion}, {"bits", bits}, {"sites", objects}};
}

}  // namespace ballast
