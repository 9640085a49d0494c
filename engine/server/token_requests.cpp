#include "engine/server/token_requests.h"

#include "engine/io/json.h"
#include "engine/server/api_error.h"
#include "engine/server/completion_format.h"

namespace ballast::server {
namespace {

using nlohmann::json;

constexpr JsonLimits kJsonLimits{.depth = 64, .array_length = 65536};
// An entry with text takes some hundred bytes here, and a body may hold millions of tokens.
constexpr size_t kMaxPieces = 65536;

// vLLM's name for a field or llama-server's.
const json& either(const json& object, const char* one, const char* other) {
  for (const char* key : {one, other})
    if (const json* value = json_find(object, key, "request")) return *value;
  throw ApiError(400, str("request: expected the field '", one, "' or '", other, "'"), one);
}

}  // namespace

json parse_request_object(std::string_view body) {
  json object;
  try {
    object = parse_json(body, "request", kJsonLimits);
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "", "invalid_json");
  }
  if (!object.is_object()) throw ApiError(400, "request: expected an object, got " + shown_json(object));
  return object;
}

json tokenize_request(std::string_view body, const ApiLimits& limits) {
  const Tokenizer& tokenizer = *limits.tokenizer;
  const json object = parse_request_object(body);
  const json& text = either(object, "prompt", "content");
  if (!text.is_string()) throw ApiError(400, "expected a string, got " + shown_json(text), "prompt");
  const bool llama = !json_find(object, "prompt", "request");
  const bool special = json_bool(object, llama ? "add_special" : "add_special_tokens", "request", !llama);
  const bool strings = json_bool(object, "return_token_strs", "request", false);
  const bool pieces = json_bool(object, "with_pieces", "request", false);
  const auto ids = tokenizer.encode(text.get_ref<const std::string&>(), special);
  if ((strings || pieces) && ids.size() > kMaxPieces)
    throw ApiError(400,
                   str("the text has ", ids.size(), " tokens, at most ", kMaxPieces, " are shown one by one"),
                   "prompt");
  json answer = {{"tokens", ids}, {"count", ids.size()}, {"max_model_len", limits.context}};
  if (strings) {
    json& list = answer["token_strs"] = json::array();
    for (const int32_t id : ids) list.push_back(CompletionFormat::token_text(tokenizer, id));
  }
  if (pieces) {
    json& list = answer["tokens"] = json::array();
    for (const int32_t id : ids)
      list.push_back({{"id", id}, {"piece", CompletionFormat::token_text(tokenizer, id)}});
  }
  return answer;
}

json detokenize_request(std::string_view body, const ApiLimits& limits) {
  const json object = parse_request_object(body);
  std::vector<int32_t> ids;
  for (const json& id : json_array(object, "tokens", "request")) {
    if (!id.is_number_integer() || id < 0 || id >= limits.usable_vocab)
      throw ApiError(400,
                     str("expected token ids from 0 to ", limits.usable_vocab - 1, ", got ", shown_json(id)),
                     "tokens");
    ids.push_back(id);
  }
  const std::string text = to_valid_utf8(limits.tokenizer->decode(ids, false));
  return {{"prompt", text}, {"content", text}};
}

}  // namespace ballast::server
