#include "models/opt.h"

#include "engine/io/json.h"
#include "engine/io/quantized.h"
#include "engine/nn/attention.h"
#include "engine/nn/embedding.h"
#include "engine/nn/mlp.h"
#include "models/weight_loader.h"

namespace ballast {
namespace {

// The position table's first two rows are never used: position p reads row p + 2.
constexpr int64_t kPositionOffset = 2;

struct OptConfig {
  int64_t hidden, layers, heads, ffn, vocab, max_positions, embedding_width;
  Activation activation;
  bool norm_before, biased, norm_affine, final_norm, tied;
  int32_t bos_id, eos_id;

  static OptConfig parse(const nlohmann::json& json, const std::string& file);
};

OptConfig OptConfig::parse(const nlohmann::json& json, const std::string& file) {
  OptConfig config{};
  config.hidden = json_int(json, "hidden_size", file, 1, 1 << 17);
  config.layers = json_int(json, "num_hidden_layers", file, 1, 1 << 12);
  config.heads = json_int(json, "num_attention_heads", file, 1, 1 << 12);
  config.ffn = json_int(json, "ffn_dim", file, 1, 1 << 20);
  config.vocab = json_int(json, "vocab_size", file, 1, 1 << 24);
  config.max_positions = json_int(json, "max_position_embeddings", file, 1, 1 << 24);
  config.embedding_width = json_int(json, "word_embed_proj_dim", file, 1, 1 << 17, config.hidden);
  config.norm_before = json_bool(json, "do_layer_norm_before", file, true);
  config.biased = json_bool(json, "enable_bias", file, true);
  config.norm_affine = json_bool(json, "layer_norm_elementwise_affine", file, true);
  config.final_norm = config.norm_before && !json_bool(json, "_remove_final_layer_norm", file, false);
  config.tied = json_bool(json, "tie_word_embeddings", file, true);
  config.bos_id = int32_t(json_int(json, "bos_token_id", file, -1, config.vocab - 1, 2));
  config.eos_id = int32_t(json_int(json, "eos_token_id", file, -1, config.vocab - 1, 2));
  if (config.hidden % config.heads != 0)
    throw Error(str(file, ": num_attention_heads is ", config.heads, ", which does not divide hidden_size ",
                    config.hidden));
  const std::string activation = json_string(json, "activation_function", file, "relu");
  if (activation != "relu" && activation != "gelu")
    throw Error(str(file, ": activation_function is \"", activation, "\", expected relu or gelu"));
  config.activation = activation == "relu" ? Activation::relu : Activation::gelu;
  return config;
}

class Opt final : public nn::Model {
 public:
  Opt(const OptConfig& config, std::string prefix, const WeightLoader& loader);

  void embed(const nn::ForwardContext& context, const OutputView& hidden) override;
  void head(const nn::ForwardContext& context, const TensorView& hidden, const OutputView& logits) override;
  TensorView head_input(const nn::ForwardContext& context, const TensorView& hidden) override;

  std::vector<nn::Linear*> outer_linears() override;
  nn::Linear& lm_head() override { return head_; }
  bool tied_head() const override { return config_.tied; }

 private:
  std::unique_ptr<nn::Block> load_block(int64_t index) const;
  const Weight& token_table() const { return config_.tied ? head_.weight : token_table_; }
  bool projected() const { return config_.embedding_width != config_.hidden; }

  OptConfig config_;
  std::string prefix_;
  WeightLoader loader_;
  Weight token_table_;     ///< [vocab, embedding_width]; empty when the head is tied
  Weight position_table_;  ///< [max_positions, hidden], without the two unused rows
  nn::Linear project_in_, project_out_, head_;
  nn::LayerNorm final_norm_;
};

Opt::Opt(const OptConfig& config, std::string prefix, const WeightLoader& loader)
    : config_(config), prefix_(std::move(prefix)), loader_(loader) {
  facts_ = {.architecture = "opt",
            .hidden = config.hidden,
            .layers = config.layers,
            .heads = config.heads,
            .ffn = config.ffn,
            .vocab = config.vocab,
            .max_positions = config.max_positions,
            .bos_id = config.bos_id,
            .eos_id = config.eos_id};
  load_block_ = [this](int64_t index) { return load_block(index); };
  position_table_ = loader_.weight_from(prefix_ + "embed_positions", config.max_positions + kPositionOffset,
                                        config.hidden, kPositionOffset);
  const std::string embedding = prefix_ + "embed_tokens";
  head_ = loader_.linear(config.tied ? embedding : "lm_head", config.vocab, config.embedding_width, false);
  if (!config.tied) token_table_ = loader_.weight(embedding, config.vocab, config.embedding_width);
  if (projected()) {
    project_in_ = loader_.linear(prefix_ + "project_in", config.hidden, config.embedding_width, false);
    project_out_ = loader_.linear(prefix_ + "project_out", config.embedding_width, config.hidden, false);
  }
  if (config.final_norm)
    final_norm_ = loader_.layernorm(prefix_ + "final_layer_norm", config.hidden, config.norm_affine);
}

std::unique_ptr<nn::Block> Opt::load_block(int64_t index) const {
  const std::string name = str(prefix_, "layers.", index, ".");
  const nn::NormPlace place = config_.norm_before ? nn::NormPlace::before : nn::NormPlace::after;
  auto attention = std::make_unique<nn::AttentionBranch>();
  const auto square = [&](const char* part) {
    return loader_.linear(name + "self_attn." + part, config_.hidden, config_.hidden, config_.biased);
  };
  attention->q = square("q_proj");
  attention->k = square("k_proj");
  attention->v = square("v_proj");
  attention->out = square("out_proj");
  attention->norm = loader_.layernorm(name + "self_attn_layer_norm", config_.hidden, config_.norm_affine);
  attention->norm_place = place;
  attention->heads = config_.heads;
  attention->layer = int(index);
  auto mlp = std::make_unique<nn::MlpBranch>();
  mlp->fc1 = loader_.linear(name + "fc1", config_.ffn, config_.hidden, config_.biased);
  mlp->fc2 = loader_.linear(name + "fc2", config_.hidden, config_.ffn, config_.biased);
  mlp->norm = loader_.layernorm(name + "final_layer_norm", config_.hidden, config_.norm_affine);
  mlp->norm_place = place;
  mlp->activation = config_.activation;
  auto block = std::make_unique<nn::Block>();
  block->branches.push_back(std::move(attention));
  block->branches.push_back(std::move(mlp));
  return block;
}

void Opt::embed(const nn::ForwardContext& context, const OutputView& hidden) {
  if (projected()) {
    Workspace::Scope scope(context.workspace);
    const OutputView narrow = context.workspace.floats({hidden.shape[0], config_.embedding_width});
    nn::embed(context, token_table(), context.batch.ids, narrow);
    context.observe(project_in_, narrow);
    project_in_.forward(context, narrow, hidden);
  } else {
    nn::embed(context, token_table(), context.batch.ids, hidden);
  }
  nn::embed(context, position_table_, context.batch.positions, hidden, true);
}

TensorView Opt::head_input(const nn::ForwardContext& context, const TensorView& hidden) {
  TensorView x = hidden;
  if (config_.final_norm) {
    const OutputView normed = context.workspace.floats(hidden.shape);
    final_norm_.forward(context, hidden, normed);
    x = normed;
  }
  if (projected()) {
    const OutputView narrow = context.workspace.floats({hidden.shape[0], config_.embedding_width});
    context.observe(project_out_, x);
    project_out_.forward(context, x, narrow);
    x = narrow;
  }
  context.observe(head_, x);
  return x;
}

void Opt::head(const nn::ForwardContext& context, const TensorView& hidden, const OutputView& logits) {
  Workspace::Scope scope(context.workspace);
  head_.forward(context, head_input(context, hidden), logits);
}

std::vector<nn::Linear*> Opt::outer_linears() {
  if (!projected()) return {};
  return {&project_in_, &project_out_};
}

// Where the decoder's tensors are: newest layout first.
std::string decoder_prefix(const Checkpoint& checkpoint) {
  for (const char* prefix : {"model.decoder.", "decoder.", ""}) {
    const std::string table = std::string(prefix) + "embed_tokens";
    if (checkpoint.find(table + ".weight") || has_quantized_weight(checkpoint, table)) return prefix;
  }
  throw Error(
      checkpoint.folder().string() +
      ": no tensor model.decoder.embed_tokens.weight or decoder.embed_tokens.weight: not an OPT checkpoint");
}

}  // namespace

std::unique_ptr<nn::Model> build_opt(const Checkpoint& checkpoint, Backend& backend) {
  const std::string file = (checkpoint.folder() / "config.json").string();
  const OptConfig config = OptConfig::parse(checkpoint.config(), file);
  const std::string prefix = decoder_prefix(checkpoint);
  const std::string beyond = str(prefix, "layers.", config.layers, ".");
  for (const StoredTensor& tensor : checkpoint.tensors())
    if (tensor.name.starts_with(beyond))
      throw Error(
          str(file, ": num_hidden_layers is ", config.layers, ", but the checkpoint holds ", tensor.name));
  if (!read_activation_sites(checkpoint).empty())
    throw Error(file + ": has activation sites; of text models only weights are quantized");
  return std::make_unique<Opt>(config, prefix, WeightLoader(checkpoint, backend));
}

}  // namespace ballast
