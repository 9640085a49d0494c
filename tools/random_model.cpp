#include "tools/random_model.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "engine/io/packed.h"
#include "tools/console.h"

namespace ballast {
namespace {

/// OPT (arXiv 2205.01068, table 1) as published: 350m alone normalizes after its branches and has narrower
/// embeddings.
struct OptShape {
  const char* name;
  int64_t layers, heads, hidden, embedding, vocab, positions;
  bool norm_before;
};

constexpr OptShape kShapes[] = {
    {"tiny", 2, 4, 64, 64, 320, 128, true},          {"125m", 12, 12, 768, 768, 50272, 2048, true},
    {"350m", 24, 16, 1024, 512, 50272, 2048, false}, {"1.3b", 24, 32, 2048, 2048, 50272, 2048, true},
    {"2.7b", 32, 32, 2560, 2560, 50272, 2048, true}, {"6.7b", 32, 32, 4096, 4096, 50272, 2048, true},
    {"13b", 40, 40, 5120, 5120, 50272, 2048, true},  {"30b", 48, 56, 7168, 7168, 50272, 2048, true},
    {"66b", 64, 72, 9216, 9216, 50272, 2048, true},
};

const OptShape* shape_named(const std::string& name) {
  for (const OptShape& shape : kShapes)
    if (name == shape.name) return &shape;
  return nullptr;
}

/// SplitMix64 (Steele, Lea, Flood 2014), whose numbers can be had in any order.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  /// The number behind the next `index` ones.
  uint64_t at(int64_t index) const {
    uint64_t z = state_ + uint64_t(index + 1) * kStep;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  void skip(int64_t count) { state_ += uint64_t(count) * kStep; }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;
  uint64_t state_;
};

// The standard normal distribution's value that a share `p` lies below, by Newton's method.
double normal_quantile(double p) {
  double z = 0;
  for (int step = 0; step < 60; ++step) {
    const double move =
        (0.5 * std::erfc(-z / std::sqrt(2.0)) - p) / (std::exp(-z * z / 2) / std::sqrt(2 * M_PI));
    z -= std::clamp(move, -1.0, 1.0);  // far out the slope is too small to trust
  }
  return z;
}

// The 2^16 values that cut the standard normal distribution into equal shares, by Newton's method from one to
// the next. Drawing from them costs a quarter of a random number.
std::vector<float> normal_quantiles() {
  constexpr int kHalf = 1 << 15;
  std::vector<float> values(2 * kHalf);
  double z = 0;
  for (int i = 0; i < kHalf; ++i) {
    const double beyond = 0.5 - (i + 0.5) / (2 * kHalf);  // P(Z > z)
    for (int step = 0; step < 8; ++step)
      z += (0.5 * std::erfc(z / std::sqrt(2.0)) - beyond) / (std::exp(-z * z / 2) / std::sqrt(2 * M_PI));
    values[size_t(kHalf + i)] = float(z);
    values[size_t(kHalf - 1 - i)] = float(-z);
  }
  return values;
}

class Writer {
 public:
  Writer(const RandomModel& model, const OptShape& shape, Backend& backend, CheckpointWriter& out)
      : model_(model),
        shape_(shape),
        backend_(backend),
        out_(out),
        random_(model.seed),
        normal_(normal_quantiles()),
        relu_quantile_(model.relu_zeros > 0 ? normal_quantile(model.relu_zeros) : 0) {}

  uint64_t run();  ///< bytes of all tensors

 private:
  void tensor(const std::string& name, const std::vector<int64_t>& dims, double spread,
              const std::vector<float>& shift = {});
  void constant(const std::string& name, int64_t size, float value);
  void norm(const std::string& name);
  std::vector<float> matrix(const std::string& module, int64_t rows, int64_t columns, double spread,
                            int bits);
  std::vector<float> linear(const std::string& module, int64_t rows, int64_t columns, double gain);
  void first_of_mlp(const std::string& module);
  void block(int64_t index);
  void tokenizer();
  int64_t layers() const { return model_.layers ? model_.layers : shape_.layers; }
  int64_t group_size(int64_t columns) const { return model_.group_size ? model_.group_size : columns; }
  nlohmann::json config() const;

  const RandomModel& model_;
  const OptShape& shape_;
  Backend& backend_;
  CheckpointWriter& out_;
  Random random_;
  std::vector<float> normal_;
  double relu_quantile_;
  std::vector<uint16_t> halves_;  ///< of one tensor
  std::vector<uint32_t> words_;
};

// Normal with this spread, plus shift[i] in element i.
void Writer::tensor(const std::string& name, const std::vector<int64_t>& dims, double spread,
                    const std::vector<float>& shift) {
  check_interrupt();
  std::vector<uint16_t> table;
  for (const float value : normal_) table.push_back(f32_to_f16(float(spread * double(value))));
  int64_t count = 1;
  for (const int64_t size : dims) count *= size;
  halves_.resize(size_t((count + 3) / 4 * 4));
  backend_.parallel_for((count + 3) / 4, [&](int64_t begin, int64_t end) {
    for (int64_t four = begin; four < end; ++four) {
      uint64_t bits = random_.at(four);
      for (int64_t i = 4 * four; i < 4 * four + 4; ++i, bits >>= 16)
        halves_[size_t(i)] = table[bits & 0xFFFF];
    }
  });
  random_.skip((count + 3) / 4);
  for (size_t i = 0; i < shift.size(); ++i) halves_[i] = f32_to_f16(f16_to_f32(halves_[i]) + shift[i]);
  out_.add(name, "F16", dims, halves_.data());
}

void Writer::constant(const std::string& name, int64_t size, float value) {
  const std::vector<uint16_t> values(size_t(size), f32_to_f16(value));
  out_.add(name, "F16", {size}, values.data());
}

void Writer::norm(const std::string& name) {
  constant(name + ".weight", shape_.hidden, 1);
  constant(name + ".bias", shape_.hidden, 0);
}

// Uniform codes of b bits with a scale s spread over s·sqrt((4^b - 1) / 12). Random words are random codes,
// whatever the width. Returns each row's sqrt(Σ w²) less what the row's mean contributes.
std::vector<float> Writer::matrix(const std::string& module, int64_t rows, int64_t columns, double spread,
                                  int bits) {
  if (bits == 16) {
    tensor(module + ".weight", {rows, columns}, spread);
    return std::vector<float>(size_t(rows), float(spread * std::sqrt(double(columns))));
  }
  check_interrupt();
  const int64_t count = columns * bits / 32 * rows, groups = columns / group_size(columns);
  words_.resize(size_t(count + 1));
  backend_.parallel_for((count + 1) / 2, [&](int64_t begin, int64_t end) {
    for (int64_t two = begin; two < end; ++two) {
      const uint64_t word = random_.at(two);
      words_[size_t(2 * two)] = uint32_t(word);
      words_[size_t(2 * two + 1)] = uint32_t(word >> 32);
    }
  });
  random_.skip((count + 1) / 2);
  const double unit = std::sqrt((std::pow(4.0, bits) - 1) / 12);
  // No reader accepts subnormal scales.
  const double scale = std::max(spread / unit, 1.5 * 0x1p-14);
  // Between 3/4 and 5/4 of that: equal scales would let wrong ones pass unseen.
  halves_.resize(size_t(groups * rows));
  std::vector<double> squares(static_cast<size_t>(rows));
  for (int64_t i = 0; i < groups * rows; ++i) {
    const uint16_t half = f32_to_f16(float(scale * (0.75 + 0.5 * double(random_.at(i) >> 40) * 0x1p-24)));
    halves_[size_t(i)] = half;
    squares[size_t(i % rows)] += std::pow(double(f16_to_f32(half)) * unit, 2) * double(columns / groups);
  }
  random_.skip(groups * rows);
  const AffineView facts{
      .bits = bits, .out_features = rows, .in_features = columns, .group_size = group_size(columns)};
  write_gptq_words(out_, module, facts, words_.data(), halves_.data(), uint8_t(1 << (bits - 1)));
  std::vector<float> spreads;
  for (const double square : squares) spreads.push_back(float(std::sqrt(square)));
  return spreads;
}

// Returns what matrix() does.
std::vector<float> Writer::linear(const std::string& module, int64_t rows, int64_t columns, double gain) {
  std::vector<float> spreads = matrix(module, rows, columns, gain / std::sqrt(double(columns)), model_.bits);
  tensor(module + ".bias", {rows}, 0.01);
  return spreads;
}

// The layer's input is normalized: of spread 1 and mean 0 in every token. So a row's sums spread like the row's
// weights, and a bias of -spread·Φ⁻¹(share) makes that share of them negative, which ReLU turns into zeros.
void Writer::first_of_mlp(const std::string& module) {
  const int64_t hidden = shape_.hidden, ffn = 4 * hidden;
  std::vector<float> shift = matrix(module, ffn, hidden, 1 / std::sqrt(double(hidden)), model_.bits);
  for (float& value : shift) value *= -float(relu_quantile_);
  tensor(module + ".bias", {ffn}, 0.01, shift);
}

// Branch outputs are made smaller the more of them add up, as GPT-2 does.
void Writer::block(int64_t index) {
  const std::string name = str("model.decoder.layers.", index, ".");
  const int64_t hidden = shape_.hidden, ffn = 4 * hidden;
  const double branch_gain = 1 / std::sqrt(2.0 * double(shape_.layers));
  for (const char* part : {"q_proj", "k_proj", "v_proj"})
    linear(name + "self_attn." + part, hidden, hidden, 1);
  linear(name + "self_attn.out_proj", hidden, hidden, branch_gain);
  norm(name + "self_attn_layer_norm");
  first_of_mlp(name + "fc1");
  linear(name + "fc2", hidden, ffn, branch_gain);
  norm(name + "final_layer_norm");
}

uint64_t Writer::run() {
  const std::string decoder = "model.decoder.";
  const int64_t hidden = shape_.hidden, width = shape_.embedding;
  const double spread = 1 / std::sqrt(double(width));
  matrix(decoder + "embed_tokens", shape_.vocab, width, spread, model_.head());
  tensor(decoder + "embed_positions.weight", {shape_.positions + 2, hidden}, spread);
  if (width != hidden) {
    tensor(decoder + "project_in.weight", {hidden, width}, 1 / std::sqrt(double(width)));
    tensor(decoder + "project_out.weight", {width, hidden}, 1 / std::sqrt(double(hidden)));
  }
  if (shape_.norm_before) norm(decoder + "final_layer_norm");
  for (int64_t index = 0; index < layers(); ++index) block(index);
  tokenizer();
  const uint64_t bytes = out_.tensor_bytes();
  out_.finish(config());
  return bytes;
}

// GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for code points from 256 on.
void Writer::tokenizer() {
  nlohmann::ordered_json vocabulary = {{"<s>", 0}, {"<pad>", 1}, {"</s>", 2}, {"<unk>", 3}};
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int point = printable ? byte : next++;
    std::string token;
    if (point < 0x80) {
      token = char(point);
    } else {
      token = {char(0xC0 | (point >> 6)), char(0x80 | (point & 0x3F))};
    }
    vocabulary[token] = 4 + byte;
  }
  const nlohmann::ordered_json special = {
      {"bos_token", "</s>"}, {"eos_token", "</s>"}, {"unk_token", "</s>"}, {"pad_token", "<pad>"}};
  nlohmann::ordered_json settings = special;
  settings.update({{"tokenizer_class", "GPT2Tokenizer"},
                   {"add_prefix_space", false},
                   {"add_bos_token", true},
                   {"model_max_length", shape_.positions},
                   {"errors", "replace"}});
  out_.add_file("vocab.json", vocabulary.dump() + "\n");
  out_.add_file("merges.txt", "#version: 0.2\n");
  out_.add_file("special_tokens_map.json", special.dump(2) + "\n");
  out_.add_file("tokenizer_config.json", settings.dump(2) + "\n");
}

nlohmann::json Writer::config() const {
  nlohmann::json config = {{"architectures", {"OPTForCausalLM"}},
                           {"model_type", "opt"},
                           {"vocab_size", shape_.vocab},
                           {"hidden_size", shape_.hidden},
                           {"word_embed_proj_dim", shape_.embedding},
                           {"num_hidden_layers", layers()},
                           {"num_attention_heads", shape_.heads},
                           {"ffn_dim", 4 * shape_.hidden},
                           {"max_position_embeddings", shape_.positions},
                           {"activation_function", "relu"},
                           {"do_layer_norm_before", shape_.norm_before},
                           {"enable_bias", true},
                           {"layer_norm_elementwise_affine", true},
                           {"_remove_final_layer_norm", false},
                           {"tie_word_embeddings", true},
                           {"bos_token_id", 2},
                           {"eos_token_id", 2},
                           {"pad_token_id", 1},
                           {"torch_dtype", "float16"}};
  if (model_.bits == 16) return config;
  std::vector<std::string> kept;
  if (shape_.embedding != shape_.hidden) kept = {"model.decoder.project_in", "model.decoder.project_out"};
  const int64_t group = model_.group_size ? model_.group_size : -1;
  std::vector<PackedException> exceptions;
  if (model_.head() != 16)
    exceptions.push_back({"model.decoder.embed_tokens", PackedLayout::gptq_v2, model_.head(), group});
  config["quantization_config"] = packed_config_json(
      {.layout = PackedLayout::gptq_v2, .bits = model_.bits, .group_size = group}, exceptions, kept);
  config["quantization_config"]["lm_head"] = model_.head() != 16;
  for (int64_t layer = 0; layer < layers() && model_.relu_zeros > 0; ++layer)
    config["quantization_config"]["meta"][kZeroInputs][str("model.decoder.layers.", layer, ".fc2")] =
        model_.relu_zeros;
  return config;
}

}  // namespace

std::string random_shapes() {
  std::string names;
  for (const OptShape& shape : kShapes) names += (names.empty() ? "" : ", ") + std::string(shape.name);
  return names;
}

std::vector<std::pair<int64_t, int64_t>> linear_shapes(const std::string& name) {
  const OptShape* shape = shape_named(name);
  if (!shape) throw Error("shape is \"" + name + "\", expected one of: " + random_shapes());
  const int64_t hidden = shape->hidden;
  return {{hidden, hidden}, {4 * hidden, hidden}, {hidden, 4 * hidden}, {shape->vocab, shape->embedding}};
}

void RandomModel::check() const {
  const OptShape* known = shape_named(shape);
  if (!known) throw Error("--random-model is \"" + shape + "\", expected one of: " + random_shapes());
  if (layers < 0 || layers > known->layers)
    throw Error(str("--layers is ", layers, ", expected 1 to the ", known->layers, " blocks of ", shape));
  if (bits != 16 && bits != 2 && bits != 3 && bits != 4 && bits != 8)
    throw Error(str("--bits is ", bits, ", expected 16, 2, 3, 4 or 8"));
  const int64_t width = head() != 16 ? std::gcd(known->hidden, known->embedding) : known->hidden;
  if (group_size < 0 || (group_size > 0 && width % group_size != 0))
    throw Error(str("--group-size is ", group_size, ", expected 0 or a divisor of ", width));
  if (head_bits != 0 && head_bits != 16 && head_bits != 2 && head_bits != 3 && head_bits != 4 &&
      head_bits != 8)
    throw Error(str("--head-bits is ", head_bits, ", expected 16, 2, 3, 4 or 8"));
  if (bits == 16 && head() != 16)
    throw Error("--head-bits makes no sense with --bits 16: a float model is stored without codes");
  if (relu_zeros < 0 || relu_zeros > 0.999)
    throw Error(str("--relu-zeros is ", relu_zeros, ", expected 0 to 0.999"));
  if (bits == 16 && group_size > 0)
    throw Error("--group-size makes no sense with --bits 16: binary16 weights have no groups");
}

uint64_t write_random_model(Backend& backend, const RandomModel& model, const std::filesystem::path& folder,
                            const CheckpointWriter::Options& options) {
  model.check();
  CheckpointWriter out(folder, options);
  return Writer(model, *shape_named(model.shape), backend, out).run();
}

}  // namespace ballast
