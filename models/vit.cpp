#include "models/vit.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "engine/nn/attention.h"
#include "engine/nn/embedding.h"
#include "engine/nn/mlp.h"
#include "engine/nn/pick_rows.h"
#include "engine/io/json.h"
#include "models/vit_config.h"
#include "models/weight_loader.h"

namespace ballast {
namespace {

class Vit final : public nn::Model {
 public:
  Vit(const VitConfig& config, const WeightLoader& loader);

  void embed(const nn::ForwardContext& context, const OutputView& hidden) override;
  void head(const nn::ForwardContext& context, const TensorView& hidden, const OutputView& logits) override;
  TensorView head_input(const nn::ForwardContext& context, const TensorView& hidden) override;

  std::vector<nn::Linear*> outer_linears() override { return {&projection_}; }
  nn::Linear& lm_head() override { return head_; }
  bool tied_head() const override { return false; }

 private:
  std::unique_ptr<nn::Block> load_block(int64_t index) const;
  void check_sites() const;
  nn::LayerNorm layernorm(const std::string& name) const;
  void load_queries(const std::string& block, nn::AttentionBranch& attention) const;
  void load_embedding();
  void load_head();
  const nn::ImageFacts& image() const { return *facts_.image; }

  VitConfig config_;
  WeightLoader loader_;
  nn::Linear projection_;  ///< [hidden, patch values]: the convolution over patches that do not overlap
  Tensor tokens_;          ///< f32 [1 or 2, hidden]: class token, distillation token
  Weight positions_;       ///< [tokens, hidden]
  nn::LayerNorm final_norm_;
  nn::Linear head_;  ///< [classes, hidden], or of two heads [classes, 2 · hidden]: half of either
};

Vit::Vit(const VitConfig& config, const WeightLoader& loader) : config_(config), loader_(loader) {
  facts_ = {.architecture = "vit",
            .hidden = config.hidden,
            .layers = config.layers,
            .heads = config.heads,
            .ffn = config.ffn,
            .vocab = config.classes,
            .max_positions = config.image.tokens,
            .image = config.image};
  load_block_ = [this](int64_t index) { return load_block(index); };
  load_embedding();
  final_norm_ = layernorm(config.names.outer(config.names.final_norm));
  load_head();
  check_sites();
}

// A grid for a place that this model does not have would silently be left out.
void Vit::check_sites() const {
  const VitNames& names = config_.names;
  const std::string block = std::string(names.prefix) + names.block;
  const auto known = [&](const std::string& site) {
    if (site == head_.name + ".input") return true;
    int64_t index = -1;
    const char* end = site.data() + site.size();
    if (!site.starts_with(block)) return false;
    const char* rest = std::from_chars(site.data() + block.size(), end, index).ptr;
    if (index < 0 || index >= config_.layers || rest == end) return false;
    const std::string inside(rest + 1, end);
    for (const char* layer : {names.query, names.key, names.value, names.out, names.fc1, names.fc2})
      if (inside == std::string(layer) + ".input") return true;
    for (const char* layer : {names.query, names.key, names.value})
      if (inside == std::string(layer) + ".output") return true;
    return inside == names.probabilities;
  };
  for (const auto& [site, grid] : loader_.sites())
    if (!known(site)) throw Error(str("activation site ", shown(site, 200), " has no place in a ViT of ", config_.layers, " layers"));
}

void Vit::load_embedding() {
  const VitNames& names = config_.names;
  const int64_t hidden = config_.hidden;
  const std::string projection = names.outer(names.projection);
  projection_.name = projection;
  projection_.weight = loader_.reshaped(
      projection + ".weight", {hidden, image().channels, image().patch_height, image().patch_width}, hidden,
      image().patch_values());
  projection_.bias = loader_.tensor(projection + ".bias", {hidden});
  std::vector<float> tokens = loader_.floats(names.outer(names.class_token), {1, 1, hidden});
  if (config_.distilled) {
    const std::vector<float> second = loader_.floats(names.outer(names.distillation_token), {1, 1, hidden});
    tokens.insert(tokens.end(), second.begin(), second.end());
  }
  tokens_ = loader_.from_floats(tokens, {int64_t(tokens.size()) / hidden, hidden});
  positions_ = loader_.reshaped(names.outer(names.positions), {1, image().tokens, hidden}, image().tokens,
                                hidden);
}

// Two heads become one over both tokens' rows side by side, halved, which is exact.
void Vit::load_head() {
  const int64_t classes = config_.classes, hidden = config_.hidden;
  if (!config_.two_heads) {
    head_ = loader_.linear(config_.names.head, classes, hidden, true);
    return;
  }
  std::vector<float> weight(size_t(classes * 2 * hidden)), bias(size_t(classes), 0.0f);
  int64_t side = 0;
  for (const std::string name : {config_.names.head, config_.names.distillation_head}) {
    const std::vector<float> w = loader_.floats(name + ".weight", {classes, hidden});
    const std::vector<float> b = loader_.floats(name + ".bias", {classes});
    for (int64_t row = 0; row < classes; ++row) {
      for (int64_t i = 0; i < hidden; ++i)
        weight[size_t((2 * row + side) * hidden + i)] = 0.5f * w[size_t(row * hidden + i)];
      bias[size_t(row)] += 0.5f * b[size_t(row)];
    }
    ++side;
  }
  head_.name = std::string(config_.names.head) + "+" + config_.names.distillation_head;
  head_.weight = loader_.dense(weight, classes, 2 * hidden);
  head_.bias = loader_.from_floats(bias, {classes});
}

nn::LayerNorm Vit::layernorm(const std::string& name) const {
  nn::LayerNorm norm = loader_.layernorm(name, config_.hidden, true);
  norm.epsilon = config_.epsilon;
  return norm;
}

void Vit::load_queries(const std::string& block, nn::AttentionBranch& attention) const {
  const VitNames& names = config_.names;
  const int64_t hidden = config_.hidden;
  const std::string fused = names.fused ? block + names.fused : "";
  int64_t first = 0;
  for (const auto& [layer, name] : {std::pair{&attention.q, names.query}, std::pair{&attention.k, names.key},
                                    std::pair{&attention.v, names.value}}) {
    *layer = names.fused && loader_.has(fused + ".weight")
                 ? loader_.linear_part(block + name, fused, 3 * hidden, first, hidden, hidden)
                 : loader_.linear(block + name, hidden, hidden, config_.query_biases);
    first += hidden;
  }
}

std::unique_ptr<nn::Block> Vit::load_block(int64_t index) const {
  const VitNames& names = config_.names;
  const std::string block = str(names.prefix, names.block, index, ".");
  auto attention = std::make_unique<nn::AttentionBranch>();
  load_queries(block, *attention);
  attention->out = loader_.linear(block + names.out, config_.hidden, config_.hidden, true);
  attention->norm = layernorm(block + names.norm_before);
  attention->heads = config_.heads;
  attention->layer = int(index);
  attention->probabilities = block + names.probabilities;
  for (const nn::ActivationSite& site : attention->inner_sites()) *site.grid = loader_.grid(site.name);
  attention->mask = Mask::full;
  auto mlp = std::make_unique<nn::MlpBranch>();
  mlp->fc1 = loader_.linear(block + names.fc1, config_.ffn, config_.hidden, true);
  mlp->fc2 = loader_.linear(block + names.fc2, config_.hidden, config_.ffn, true);
  mlp->norm = layernorm(block + names.norm_after);
  mlp->activation = config_.activation;
  auto result = std::make_unique<nn::Block>();
  result->branches.push_back(std::move(attention));
  result->branches.push_back(std::move(mlp));
  return result;
}

// Rows of all patches, then those of the class and distillation token; each image picks its own from them.
void Vit::embed(const nn::ForwardContext& context, const OutputView& hidden) {
  const Workspace::Scope scope(context.workspace);
  const int64_t images = int64_t(context.batch.spans.size()), patches = image().patches();
  const int64_t extra = tokens_.shape()[0];
  const OutputView rows = context.workspace.floats({images * patches + extra, config_.hidden});
  context.observe(projection_, context.batch.patches);
  projection_.forward(context, context.batch.patches, rows.rows(0, images * patches));
  context.backend.copy_to_device(rows.rows(images * patches, extra).as<void>(), tokens_.view().data,
                                 tokens_.bytes());
  std::vector<int32_t> order;
  for (int64_t i = 0; i < images; ++i) {
    for (int64_t t = 0; t < extra; ++t) order.push_back(int32_t(images * patches + t));
    for (int64_t p = 0; p < patches; ++p) order.push_back(int32_t(i * patches + p));
  }
  nn::pick_rows(context, rows, order, hidden);
  nn::embed(context, positions_, context.batch.positions, hidden, true);
}

TensorView Vit::head_input(const nn::ForwardContext& context, const TensorView& hidden) {
  const int64_t each = config_.two_heads ? 2 : 1;
  std::vector<int32_t> rows;
  for (const AttentionSpan& span : context.batch.spans)
    for (int32_t i = 0; i < each; ++i) rows.push_back(span.first_row + i);
  const OutputView picked = context.workspace.floats({int64_t(rows.size()), config_.hidden});
  nn::pick_rows(context, hidden, rows, picked);
  const OutputView normed = context.workspace.floats(picked.shape);
  final_norm_.forward(context, picked, normed);
  const TensorView x(normed.data, DType::f32, {int64_t(rows.size()) / each, each * config_.hidden},
                     normed.device);
  context.observe(head_, x);
  return x;
}

void Vit::head(const nn::ForwardContext& context, const TensorView& hidden, const OutputView& logits) {
  const Workspace::Scope scope(context.workspace);
  head_.forward(context, head_input(context, hidden), logits);
}

}  // namespace

std::unique_ptr<nn::Model> build_vit(const Checkpoint& checkpoint, Backend& backend) {
  return std::make_unique<Vit>(VitConfig::read(checkpoint), WeightLoader(checkpoint, backend));
}

}  // namespace ballast
