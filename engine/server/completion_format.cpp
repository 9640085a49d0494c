#include "engine/server/completion_format.h"

#include <ctime>

#include "engine/io/tokenizer_utf8.h"
#include "engine/server/api_error.h"

namespace ballast::server {
namespace {

using nlohmann::json;

json finish_name(FinishReason finish) {
  return finish == FinishReason::none ? json(nullptr) : json(name_of(finish));
}

json ids_of(const std::vector<TokenRecord>& tokens) {
  json ids = json::array();
  for (const TokenRecord& token : tokens) ids.push_back(token.id);
  return ids;
}

json bytes_of(std::string_view text) {
  json bytes = json::array();
  for (const char byte : text) bytes.push_back(uint8_t(byte));
  return bytes;
}

}  // namespace

std::string sse_event(const json& value) {
  return "data: " + to_text(value) + "\n\n";
}

json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

CompletionFormat::CompletionFormat(const CompletionRequest& request, const Tokenizer& tokenizer,
                                   std::string model, std::string id, std::string fingerprint)
    : request_(request),
      tokenizer_(tokenizer),
      model_(std::move(model)),
      id_(std::move(id)),
      fingerprint_(std::move(fingerprint)),
      created_(std::time(nullptr)) {}

std::string CompletionFormat::token_text(const Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  if (valid_utf8_prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string text = "bytes:";
  for (const char byte : bytes) {
    const char* const digits = "0123456789abcdef";
    text += "\\x";
    text += digits[uint8_t(byte) >> 4];
    text += digits[uint8_t(byte) & 15];
  }
  return text;
}

json CompletionFormat::envelope(const char* object) const {
  const bool chat = request_.dialect == Dialect::chat;
  return {{"id", (chat ? "chatcmpl-" : "cmpl-") + id_},
          {"object", object},
          {"created", created_},
          {"model", model_},
          {"system_fingerprint", fingerprint_}};
}

json CompletionFormat::logprobs(const std::vector<TokenRecord>& tokens) const {
  json texts = json::array(), values = json::array(), tops = json::array(), offsets = json::array();
  for (const TokenRecord& token : tokens) {
    const std::string text = token_text(tokenizer_, token.id);
    offsets.push_back(token.text_offset);
    texts.push_back(text);
    if (!token.scored) {
      values.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    values.push_back(double(token.logprob));
    json top = json::object();
    // Two ids may have the same text; the likelier one keeps it.
    for (const auto& [id, logprob] : token.top) top.emplace(token_text(tokenizer_, id), double(logprob));
    top.emplace(text, double(token.logprob));
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

json CompletionFormat::token_list(const std::vector<TokenRecord>& tokens, bool with_ids) const {
  const auto entry = [&](int32_t id, float logprob) {
    json object = {{"token", token_text(tokenizer_, id)},
                   {"logprob", double(logprob)},
                   {"bytes", bytes_of(tokenizer_.token_bytes(id))}};
    if (with_ids) object["id"] = id;
    return object;
  };
  json list = json::array();
  for (const TokenRecord& token : tokens) {
    json object = entry(token.id, token.logprob);
    object["top_logprobs"] = json::array();
    for (const auto& [id, logprob] : token.top) object["top_logprobs"].push_back(entry(id, logprob));
    list.push_back(std::move(object));
  }
  return list;
}

json CompletionFormat::choice(int64_t index, const Piece& piece) const {
  json object = {{"index", index},
                 {"text", piece.text},
                 {"logprobs", request_.logprobs >= 0 ? logprobs(piece.tokens) : json(nullptr)},
                 {"finish_reason", finish_name(piece.finish)}};
  if (request_.return_token_ids) {
    object["token_ids"] = ids_of(piece.tokens);
    if (piece.first) object["prompt_token_ids"] = request_.prompts[size_t(index / request_.n)].ids;
  }
  return object;
}

json CompletionFormat::chat_choice(int64_t index, const Piece& piece, bool delta) const {
  json message = {{"content", piece.text}};
  if (!delta || piece.first) message["role"] = "assistant";
  return {{"index", index},
          {delta ? "delta" : "message", std::move(message)},
          {"logprobs", request_.logprobs >= 0 ? json{{"content", token_list(piece.tokens, false)}} : json(nullptr)},
          {"finish_reason", finish_name(piece.finish)}};
}

json CompletionFormat::llama(int64_t index, const Piece& piece, bool last, const Usage& usage,
                             const Timing& timing) const {
  json object = {{"index", index},
                 {"content", piece.text},
                 {"tokens", request_.return_token_ids ? ids_of(piece.tokens) : json::array()},
                 {"stop", last},
                 {"id_slot", 0},
                 {"tokens_predicted", usage.completion_tokens},
                 {"tokens_evaluated", usage.prompt_tokens}};
  if (request_.logprobs >= 0) object["completion_probabilities"] = token_list(piece.tokens, true);
  if (!last) return object;
  const double decode = timing.last_token - timing.first_token;
  const auto after_first = double(usage.completion_tokens - 1);
  object["model"] = model_;
  object["truncated"] = false;
  object["tokens_cached"] = usage.prompt_tokens + usage.completion_tokens;
  object["stop_type"] = piece.finish == FinishReason::length ? "limit"
                        : piece.by_stop_string               ? "word"
                                                             : "eos";
  object["stopping_word"] = "";
  object["timings"] = {{"prompt_n", usage.prompt_tokens - usage.cached_tokens},
                       {"prompt_ms", timing.first_token * 1e3},
                       {"predicted_n", usage.completion_tokens},
                       {"predicted_ms", decode * 1e3},
                       {"predicted_per_second", decode > 0 ? after_first / decode : 0}};
  return object;
}

json CompletionFormat::whole(const std::vector<Piece>& choices, const Usage& usage,
                             const Timing& timing) const {
  if (request_.dialect == Dialect::llama) {
    if (choices.size() == 1) return llama(0, choices[0], true, usage, timing);
    json list = json::array();
    for (size_t i = 0; i < choices.size(); ++i)
      list.push_back(llama(int64_t(i), choices[i], true, usage, timing));
    return list;
  }
  const bool chat = request_.dialect == Dialect::chat;
  json answer = envelope(chat ? "chat.completion" : "text_completion");
  json& list = answer["choices"] = json::array();
  for (size_t i = 0; i < choices.size(); ++i)
    list.push_back(chat ? chat_choice(int64_t(i), choices[i], false) : choice(int64_t(i), choices[i]));
  answer["usage"] = usage_json(usage);
  return answer;
}

std::string CompletionFormat::piece(int64_t index, const Piece& piece, const Usage& usage,
                                    const Timing& timing) const {
  if (request_.dialect == Dialect::llama)
    return sse_event(llama(index, piece, piece.finish != FinishReason::none, usage, timing));
  const bool chat = request_.dialect == Dialect::chat;
  json chunk = envelope(chat ? "chat.completion.chunk" : "text_completion");
  chunk["choices"] = json::array({chat ? chat_choice(index, piece, true) : choice(index, piece)});
  if (request_.include_usage) chunk["usage"] = nullptr;
  return sse_event(chunk);
}

std::string CompletionFormat::ending(const Usage& usage) const {
  if (request_.dialect == Dialect::llama) return "";
  std::string text;
  if (request_.include_usage) {
    json chunk = envelope(request_.dialect == Dialect::chat ? "chat.completion.chunk" : "text_completion");
    chunk["choices"] = json::array();
    chunk["usage"] = usage_json(usage);
    text = sse_event(chunk);
  }
  return text + "data: [DONE]\n\n";
}

}  // namespace ballast::server
