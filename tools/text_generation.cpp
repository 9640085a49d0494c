#include "tools/text_generation.h"

namespace ballast {

TextGeneration::TextGeneration(const Tokenizer& tokenizer, std::vector<int32_t> prompt,
                               GenerationParams params, std::vector<std::string> stop, OnText on_text)
    : tokenizer_(tokenizer),
      stream_(StreamDecoder(tokenizer), std::move(stop)),
      on_text_(std::move(on_text)) {
  sequence_ =
      std::make_shared<Sequence>(std::move(prompt), std::move(params),
                                 [this](const Sequence&, const SampledToken& token) { return take(token); });
}

bool TextGeneration::take(const SampledToken& token) {
  last_ = Clock::now();
  if (tokens_.empty()) first_ = last_;
  tokens_.push_back(token);
  show(stream_.push(token.id));
  return !stream_.stopped();
}

void TextGeneration::finish() {
  show(stream_.flush());
}

void TextGeneration::show(const std::string& piece) {
  if (piece.empty()) return;
  text_ += piece;
  if (on_text_) on_text_(piece);
}

double TextGeneration::decode_rate() const {
  return tokens_.size() < 2 || decode_seconds() <= 0 ? 0 : double(tokens_.size() - 1) / decode_seconds();
}

double TextGeneration::prompt_rate() const {
  return tokens_.empty() || prompt_seconds() <= 0 ? 0 : double(sequence_->prompt_tokens) / prompt_seconds();
}

nlohmann::json TextGeneration::json() const {
  nlohmann::json object = {{"text", text_},
                           {"token_ids", ids()},
                           {"finish_reason", name_of(sequence_->finish)},
                           {"prompt_tokens", sequence_->prompt_tokens},
                           {"completion_tokens", sequence_->generated()}};
  if (sequence_->params.sampling.logprobs >= 0) object["logprobs"] = logprobs_json();
  return object;
}

nlohmann::json TextGeneration::logprobs_json() const {
  const auto entry = [&](int32_t id, float logprob) {
    return nlohmann::json{
        {"id", id}, {"token", to_valid_utf8(tokenizer_.token_bytes(id))}, {"logprob", logprob}};
  };
  nlohmann::json list = nlohmann::json::array();
  for (const SampledToken& token : tokens_) {
    nlohmann::json object = entry(token.id, token.logprob);
    object["top"] = nlohmann::json::array();
    for (const auto& [id, logprob] : token.top) object["top"].push_back(entry(id, logprob));
    list.push_back(std::move(object));
  }
  return list;
}

}  // namespace ballast
