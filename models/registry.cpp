#include "models/registry.h"

#include "engine/io/json.h"
#include "models/opt.h"
#include "models/vit.h"

namespace ballast {
namespace {

struct Row {
  const char* model_type;  ///< config.json's model_type
  std::unique_ptr<nn::Model> (*build)(const Checkpoint&, Backend&);
  bool images;
};

constexpr Row kArchitectures[] = {
    {"opt", build_opt, false},
    {"vit", build_vit, true},
    {"deit", build_vit, true},
};

const Row& row_of(const Checkpoint& checkpoint) {
  const std::string file = (checkpoint.folder() / "config.json").string();
  // timm's files name an architecture of the ViT family and no type.
  const bool timm = json_find(checkpoint.config(), "architecture", file) != nullptr;
  const std::string type = timm ? json_string(checkpoint.config(), "model_type", file, "vit")
                                : json_string(checkpoint.config(), "model_type", file);
  std::string known;
  for (const Row& row : kArchitectures) {
    if (type == row.model_type) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.model_type);
  }
  throw Error(str(file, ": model_type is \"", type, "\", expected one of: ", known));
}

}  // namespace

std::unique_ptr<nn::Model> load_model(const Checkpoint& checkpoint, Backend& backend) {
  auto model = row_of(checkpoint).build(checkpoint, backend);
  checkpoint.check_intact();
  return model;
}

bool reads_images(const Checkpoint& checkpoint) {
  return row_of(checkpoint).images;
}

}  // namespace ballast
