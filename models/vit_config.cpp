#include "models/vit_config.h"

#include <algorithm>
#include <charconv>

#include "engine/io/json.h"
#include "engine/io/quantized.h"

namespace ballast {
namespace {

constexpr VitNames hugging_face(const char* prefix, const char* head) {
  return {.prefix = prefix,
          .class_token = "embeddings.cls_token",
          .distillation_token = "embeddings.distillation_token",
          .positions = "embeddings.position_embeddings",
          .projection = "embeddings.patch_embeddings.projection",
          .final_norm = "layernorm",
          .block = "encoder.layer.",
          .fused = nullptr,
          .query = "attention.attention.query",
          .key = "attention.attention.key",
          .value = "attention.attention.value",
          .out = "attention.output.dense",
          .norm_before = "layernorm_before",
          .norm_after = "layernorm_after",
          .fc1 = "intermediate.dense",
          .fc2 = "output.dense",
          .probabilities = "attention.attention.probabilities",
          .head = head,
          .distillation_head = "distillation_classifier"};
}

constexpr VitNames kLayouts[] = {hugging_face("vit.", "classifier"),
                                 hugging_face("deit.", "classifier"),
                                 hugging_face("deit.", "cls_classifier"),
                                 {.prefix = "",
                                  .class_token = "cls_token",
                                  .distillation_token = "dist_token",
                                  .positions = "pos_embed",
                                  .projection = "patch_embed.proj",
                                  .final_norm = "norm",
                                  .block = "blocks.",
                                  .fused = "attn.qkv",
                                  .query = "attn.q_proj",
                                  .key = "attn.k_proj",
                                  .value = "attn.v_proj",
                                  .out = "attn.proj",
                                  .norm_before = "norm1",
                                  .norm_after = "norm2",
                                  .fc1 = "mlp.fc1",
                                  .fc2 = "mlp.fc2",
                                  .probabilities = "attn.probabilities",
                                  .head = "head",
                                  .distillation_head = "head_dist"}};

class Reader {
 public:
  explicit Reader(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), file_((checkpoint.folder() / "config.json").string()) {}

  VitConfig read();

 private:
  void find_names();
  void check_architecture() const;
  void read_hugging_face();
  void read_timm();
  void read_shapes();
  void check_labels() const;
  void check_tensors() const;
  /// One number, or two where height and width differ.
  std::pair<int64_t, int64_t> extent(const char* key, int64_t fallback) const;
  const StoredTensor* find(const char* name) const { return checkpoint_.find(config_.names.outer(name)); }
  const StoredTensor& shaped(const std::string& name, size_t rank) const;

  const Checkpoint& checkpoint_;
  std::string file_;
  VitConfig config_;
};

void Reader::find_names() {
  for (const VitNames& names : kLayouts) {
    config_.names = names;
    if (find(names.class_token) && checkpoint_.find(std::string(names.head) + ".bias")) return;
  }
  throw Error(checkpoint_.folder().string() +
              ": no tensor vit.embeddings.cls_token, deit.embeddings.cls_token or cls_token with a classifier: not an "
              "image classifier of the ViT family");
}

const StoredTensor& Reader::shaped(const std::string& name, size_t rank) const {
  const StoredTensor& tensor = checkpoint_.require(name);
  if (tensor.shape.size() != rank)
    throw Error(str(checkpoint_.folder().string(), ": tensor ", shown(name), " has rank ", tensor.shape.size(),
                    ", expected ", rank));
  for (const int64_t size : tensor.shape)
    if (size < 1 || size > 1 << 20)
      throw Error(str(checkpoint_.folder().string(), ": tensor ", shown(name), " has a dimension of ", size));
  return tensor;
}

void Reader::check_architecture() const {
  const nlohmann::json* list = json_find(checkpoint_.config(), "architectures", file_);
  if (!list || !list->is_array() || list->empty()) return;
  static constexpr const char* kKnown[] = {"ViTForImageClassification", "DeiTForImageClassification",
                                           "DeiTForImageClassificationWithTeacher"};
  for (const char* known : kKnown)
    if (list->front() == known) return;
  throw Error(str(file_, ": architectures is ", shown_json(list->front()),
                  ", expected ViTForImageClassification, DeiTForImageClassification or "
                  "DeiTForImageClassificationWithTeacher"));
}

std::pair<int64_t, int64_t> Reader::extent(const char* key, int64_t fallback) const {
  const nlohmann::json* value = json_find(checkpoint_.config(), key, file_);
  if (!value || !value->is_array()) {
    const int64_t both = json_int(checkpoint_.config(), key, file_, 1, 1 << 14, fallback);
    return {both, both};
  }
  const auto whole = [](const nlohmann::json& size) {
    return size.is_number_integer() && size >= 1 && size <= 1 << 14;
  };
  if (value->size() != 2 || !whole((*value)[0]) || !whole((*value)[1]))
    throw Error(str(file_, ": ", key, " is ", shown_json(*value), ", expected a number or height and width"));
  return {(*value)[0].get<int64_t>(), (*value)[1].get<int64_t>()};
}

void Reader::read_hugging_face() {
  const nlohmann::json& json = checkpoint_.config();
  check_architecture();
  config_.hidden = json_int(json, "hidden_size", file_, 1, 1 << 17, 768);
  config_.layers = json_int(json, "num_hidden_layers", file_, 1, 1 << 12, 12);
  config_.heads = json_int(json, "num_attention_heads", file_, 1, 1 << 12, 12);
  config_.ffn = json_int(json, "intermediate_size", file_, 1, 1 << 20, 3072);
  std::tie(config_.image.height, config_.image.width) = extent("image_size", 224);
  std::tie(config_.image.patch_height, config_.image.patch_width) = extent("patch_size", 16);
  config_.image.channels = json_int(json, "num_channels", file_, 3, 3, 3);
  config_.epsilon = float(json_number(json, "layer_norm_eps", file_, 0, 1, 1e-12));
  config_.query_biases = json_bool(json, "qkv_bias", file_, true);
  const std::string activation = json_string(json, "hidden_act", file_, "gelu");
  if (activation != "gelu" && activation != "relu")
    throw Error(str(file_, ": hidden_act is ", shown(activation), ", expected gelu or relu"));
  config_.activation = activation == "gelu" ? Activation::gelu : Activation::relu;
}

// timm's file holds a name and how images are prepared; sizes are those of the tensors. All published models have
// heads of 64 dimensions but the largest, whose heads have 80, 88 or 104.
void Reader::read_timm() {
  const nlohmann::json& json = checkpoint_.config();
  const std::string architecture = json_string(json, "architecture", file_);
  if (!architecture.starts_with("vit_") && !architecture.starts_with("deit_"))
    throw Error(str(file_, ": architecture is ", shown(architecture), ", expected one of vit_… or deit_…"));
  const VitNames& names = config_.names;
  const StoredTensor& projection = shaped(names.outer(names.projection) + ".weight", 4);
  config_.hidden = projection.shape[0];
  config_.image.channels = projection.shape[1];
  config_.image.patch_height = projection.shape[2];
  config_.image.patch_width = projection.shape[3];
  config_.ffn = shaped(str(names.prefix, names.block, 0, ".", names.fc1, ".bias"), 1).shape[0];
  while (checkpoint_.find(str(names.prefix, names.block, config_.layers, ".", names.norm_before, ".weight")))
    ++config_.layers;
  config_.heads = config_.hidden / 64;
  for (const auto& [part, heads] : {std::pair{"_huge_", 16}, std::pair{"_giant_", 16}, std::pair{"_gigantic_", 16}})
    if (architecture.find(part) != std::string::npos) config_.heads = heads;
  if (const nlohmann::json* arguments = json_find(json, "model_args", file_))
    config_.heads = json_int(*arguments, "num_heads", file_, 1, 1 << 12, config_.heads);
  if (config_.heads < 1)
    throw Error(str(file_, ": hidden size ", config_.hidden, " has no published number of heads; name it as model_args.num_heads"));
  const StoredTensor& positions = shaped(names.outer(names.positions), 3);
  const int64_t before = find(names.distillation_token) ? 2 : 1;
  int64_t side = 1;
  while ((side + 1) * (side + 1) <= positions.shape[1] - before) ++side;
  config_.image.height = side * config_.image.patch_height;
  config_.image.width = side * config_.image.patch_width;
}

// What the tensors decide; every shape is compared again where a tensor is loaded.
void Reader::read_shapes() {
  const VitNames& names = config_.names;
  nn::ImageFacts& image = config_.image;
  config_.classes = shaped(std::string(names.head) + ".bias", 1).shape[0];
  config_.distilled = find(names.distillation_token) != nullptr;
  config_.two_heads = checkpoint_.find(std::string(names.distillation_head) + ".bias") != nullptr;
  if (config_.two_heads && !config_.distilled)
    throw Error(str(checkpoint_.folder().string(), ": ", names.distillation_head, " without a distillation token"));
  if (config_.hidden % config_.heads != 0)
    throw Error(str(file_, ": ", config_.heads, " attention heads do not divide the hidden size ", config_.hidden));
  if (image.height % image.patch_height != 0 || image.width % image.patch_width != 0)
    throw Error(str(file_, ": patch_size ", image.patch_height, " x ", image.patch_width,
                    " does not divide image_size ", image.height, " x ", image.width));
  image.tokens = image.patches() + (config_.distilled ? 2 : 1);
}

void Reader::check_labels() const {
  for (const char* key : {"id2label", "num_labels"}) {
    const nlohmann::json* value = json_find(checkpoint_.config(), key, file_);
    if (!value) continue;
    const int64_t named = value->is_object() ? int64_t(value->size())
                                             : json_int(checkpoint_.config(), key, file_, 1, 1 << 24);
    if (named != config_.classes)
      throw Error(str(file_, ": ", key, " says ", named, " classes, but the classifier has ", config_.classes));
  }
}

// A tensor without a part in this model would silently be left out: layer scale, relative positions, a deeper head.
void Reader::check_tensors() const {
  const VitNames& names = config_.names;
  const std::string prefix = names.prefix, block = prefix + names.block;
  const auto is_of = [](const std::string& name, const std::string& module) {
    return name.starts_with(module) && (name.size() == module.size() || name[module.size()] == '.');
  };
  const auto known = [&](const std::string& name) {
    if (name.starts_with(block)) {
      int64_t index = -1;
      const char* end = name.data() + name.size();
      const char* rest = std::from_chars(name.data() + block.size(), end, index).ptr;
      if (index < 0 || index >= config_.layers || rest == end) return false;
      const std::string inside(rest + 1, end);
      for (const char* part : {names.query, names.key, names.value, names.out, names.norm_before,
                               names.norm_after, names.fc1, names.fc2, names.fused,
                               names.probabilities})
        if (part && is_of(inside, part)) return true;
      return false;
    }
    for (const char* part : {names.class_token, names.distillation_token, names.positions, names.projection,
                             names.final_norm})
      if (is_of(name, prefix + part)) return true;
    // Hugging Face stores what its own other tasks use.
    return is_of(name, names.head) || is_of(name, names.distillation_head) || is_of(name, prefix + "pooler") ||
           is_of(name, prefix + "embeddings.mask_token");
  };
  for (const StoredTensor& tensor : checkpoint_.tensors())
    if (!known(tensor.name))
      throw Error(str(checkpoint_.folder().string(), ": tensor ", shown(tensor.name), " has no place in a ViT of ",
                      config_.layers, " layers"));
}

VitConfig Reader::read() {
  find_names();
  if (json_find(checkpoint_.config(), "model_type", file_)) {
    read_hugging_face();
  } else {
    read_timm();
  }
  read_shapes();
  check_labels();
  check_tensors();
  return config_;
}

}  // namespace

VitConfig VitConfig::read(const Checkpoint& checkpoint) {
  return Reader(checkpoint).read();
}

}  // namespace ballast
