// A folder with a random OPT model of a few kilobytes and a byte tokenizer: quantized in milliseconds.
#pragma once

#include <fstream>

#include "engine/io/checkpoint_writer.h"
#include "tests/support/random.h"
#include "tests/tools/run_ballast.h"

namespace ballast {

inline void write_tiny_model(const std::filesystem::path& folder) {
  constexpr int64_t kHidden = 32, kFfn = 64, kLayers = 2, kPositions = 32, kVocab = 260;
  test::Random random(11);
  CheckpointWriter writer(folder, {});
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float size) {
    int64_t count = 1;
    for (const int64_t dimension : shape) count *= dimension;
    writer.add("model.decoder." + name, "F32", shape, random.floats(count, -size, size).data());
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in}, 0.3f);
    add(name + ".bias", {out}, 0.1f);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {kHidden}, 1);
    add(name + ".bias", {kHidden}, 0.1f);
  };
  add("embed_tokens.weight", {kVocab, kHidden}, 0.5f);
  add("embed_positions.weight", {kPositions + 2, kHidden}, 0.5f);
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = str("layers.", i, ".");
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"})
      linear(layer + "self_attn." + name, kHidden, kHidden);
    norm(layer + "self_attn_layer_norm");
    linear(layer + "fc1", kFfn, kHidden);
    linear(layer + "fc2", kHidden, kFfn);
    norm(layer + "final_layer_norm");
  }
  norm("final_layer_norm");
  // Of the bundled model's tokenizer, the special tokens and the bytes.
  std::ifstream file(std::string(kDemo) + "/vocab.json");
  const nlohmann::json whole = nlohmann::json::parse(file);
  nlohmann::json vocab;
  for (const auto& [token, id] : whole.items())
    if (id < kVocab) vocab[token] = id;
  writer.add_file("vocab.json", vocab.dump());
  writer.add_file("merges.txt", "#version: 0.2\n");
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) writer.copy_file(kDemo, name);
  writer.finish({{"architectures", {"OPTForCausalLM"}},
                 {"model_type", "opt"},
                 {"vocab_size", kVocab},
                 {"hidden_size", kHidden},
                 {"word_embed_proj_dim", kHidden},
                 {"num_hidden_layers", kLayers},
                 {"num_attention_heads", 2},
                 {"ffn_dim", kFfn},
                 {"max_position_embeddings", kPositions},
                 {"activation_function", "relu"},
                 {"do_layer_norm_before", true},
                 {"bos_token_id", 2},
                 {"eos_token_id", 2},
                 {"pad_token_id", 1},
                 {"torch_dtype", "float32"}});
}

}  // namespace ballast
