#include "engine/server/completion_request.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "engine/io/json.h"
#include "engine/server/api_error.h"
#include "engine/server/token_requests.h"

namespace ballast::server {
namespace {

using nlohmann::json;

constexpr int64_t kMaxBestOf = 20;
constexpr int kMaxChatLogprobs = 20;
constexpr int64_t kAnyCount = int64_t(1) << 40;

/// A request's fields, remembered as they are asked for: what nobody asked for is unknown.
class Fields {
 private:
  template <class Read>
  auto read(const char* key, const Read& value) {
    known_.insert(key);
    try {
      return value();
    } catch (const Error& error) {
      throw ApiError(400, error.what(), key);
    }
  }

 public:
  explicit Fields(const json& object) : object_(object) {}

  const json* find(const char* key) {
    known_.insert(key);
    return json_find(object_, key, kWhat);
  }
  int64_t integer(const char* key, int64_t low, int64_t high, int64_t fallback) {
    return read(key, [&] { return json_int(object_, key, kWhat, low, high, fallback); });
  }
  double number(const char* key, double low, double high, double fallback) {
    return read(key, [&] { return json_number(object_, key, kWhat, low, high, fallback); });
  }
  bool boolean(const char* key, bool fallback) {
    return read(key, [&] { return json_bool(object_, key, kWhat, fallback); });
  }
  std::string string(const char* key) {
    return read(key, [&] { return json_string(object_, key, kWhat, ""); });
  }
  void ignore(std::initializer_list<const char*> keys) { known_.insert(keys.begin(), keys.end()); }

  std::vector<std::string> unknown() const {
    std::vector<std::string> names;
    for (const auto& [key, value] : object_.items())
      if (!known_.contains(key)) names.push_back(key);
    return names;
  }

 private:
  static constexpr const char* kWhat = "request";

  const json& object_;
  std::set<std::string> known_;
};

[[noreturn]] void refuse(const char* key, const std::string& expected, const std::string& got) {
  throw ApiError(400, str("request: field '", key, "': expected ", expected, ", got ", got), key);
}

std::vector<std::string> parse_stop(const json* value, const char* key, const ApiLimits& limits) {
  if (!value) return {};
  const std::string expected =
      str("a string or up to ", limits.max_stops, " strings of 1 to ", limits.max_stop_bytes, " bytes");
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > limits.max_stops) refuse(key, expected, str(list.size(), " strings"));
  std::vector<std::string> stop;
  for (const json& text : list) {
    if (!text.is_string()) refuse(key, expected, shown_json(text));
    stop.push_back(text);
    if (stop.back().empty() || stop.back().size() > limits.max_stop_bytes)
      refuse(key, expected, str("one of ", stop.back().size(), " bytes"));
  }
  return stop;
}

int32_t parse_id(const json& value, const char* key, const ApiLimits& limits) {
  const bool good = value.is_number_integer() && value >= 0 && value < limits.usable_vocab;
  if (!good) refuse(key, str("token ids from 0 to ", limits.usable_vocab - 1), shown_json(value));
  return value;
}

std::vector<int32_t> parse_ids(const json& list, const char* key, const ApiLimits& limits) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& value : list) ids.push_back(parse_id(value, key, limits));
  return ids;
}

double parse_bias(const json& value, const char* key) {
  if (!value.is_number() || !(value >= -100.0 && value <= 100.0))
    refuse(key, "biases from -100 to 100", shown_json(value));
  return value;
}

// {"50256": -100} and llama-server's [[50256, -100], [11, false]].
void parse_logit_bias(const json* value, SamplingParams& sampling, const ApiLimits& limits) {
  constexpr const char* kKey = "logit_bias";
  if (!value) return;
  if (value->is_array()) {
    for (const json& pair : *value) {
      if (!pair.is_array() || pair.size() != 2) refuse(kKey, "pairs of token id and bias", shown_json(pair));
      const double bias = pair[1] == false ? -100 : parse_bias(pair[1], kKey);
      sampling.logit_bias.emplace_back(parse_id(pair[0], kKey, limits), bias);
    }
    return;
  }
  if (!value->is_object()) refuse(kKey, "an object", shown_json(*value));
  for (const auto& [name, bias] : value->items()) {
    int64_t id = -1;
    if (std::from_chars(name.data(), name.data() + name.size(), id).ptr != name.data() + name.size()) id = -1;
    sampling.logit_bias.emplace_back(parse_id(name.empty() ? json(-1) : json(id), kKey, limits),
                                     parse_bias(bias, kKey));
  }
}

/// Prompt text, ids and offsets.
class PromptReader {
 public:
  PromptReader(const ApiLimits& limits, bool with_text) : limits_(limits), with_text_(with_text) {}

  std::vector<Prompt> read(const json* value) const {
    if (!value) refuse(kKey, "a string, an array of strings, token ids or arrays of token ids", "nothing");
    if (value->is_string()) return {from_text(*value)};
    if (!value->is_array()) refuse(kKey, "a string or an array", shown_json(*value));
    if (value->empty()) refuse(kKey, "at least one prompt or token", "an empty array");
    if (value->front().is_number()) return {from_ids(*value)};
    if (int64_t(value->size()) > limits_.max_choices)
      refuse(kKey, str("at most ", limits_.max_choices, " prompts"), str(value->size()));
    std::vector<Prompt> prompts;
    const bool texts = value->front().is_string();
    for (const json& one : *value) {
      if (texts ? !one.is_string() : !one.is_array())
        refuse(kKey, "prompts of one kind, strings or arrays of token ids", shown_json(one));
      prompts.push_back(texts ? from_text(one) : from_ids(one));
    }
    return prompts;
  }

  Prompt from_text(const std::string& text) const {
    Prompt prompt;
    try {
      prompt.ids = limits_.tokenizer->encode(text);
    } catch (const Error& error) {
      throw ApiError(400, error.what(), kKey);
    }
    if (prompt.ids.empty()) refuse(kKey, "at least one token", "an empty text");
    if (with_text_) locate(prompt, true);
    return prompt;
  }

 private:
  static constexpr const char* kKey = "prompt";

  Prompt from_ids(const json& list) const {
    if (list.empty()) refuse(kKey, "at least one token", "an empty array");
    Prompt prompt{.ids = parse_ids(list, kKey, limits_)};
    if (with_text_) locate(prompt, false);
    return prompt;
  }

  // Special tokens that the client wrote itself are part of the text, the one that begins every text is not.
  void locate(Prompt& prompt, bool own_text) const {
    StreamDecoder decoder(*limits_.tokenizer, !own_text);
    int64_t characters = 0;
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      prompt.offsets.push_back(characters);
      if (own_text && i == 0 && prompt.ids[0] == limits_.tokenizer->bos_id()) continue;
      const std::string piece = decoder.push(prompt.ids[i]);
      characters += count_characters(piece);
      prompt.text += piece;
    }
  }

  const ApiLimits& limits_;
  bool with_text_;
};

void parse_sampling(Fields& fields, CompletionRequest& request, const ApiLimits& limits) {
  SamplingParams& sampling = request.params.sampling;
  const bool llama = request.dialect == Dialect::llama;
  sampling.temperature = fields.number("temperature", 0, llama ? 100 : 2, llama ? 0.8 : 1);
  // The likeliest token always stays, so 0 is as good as the smallest share.
  sampling.top_p = std::max(fields.number("top_p", 0, 1, llama ? 0.95 : 1), 1e-9);
  sampling.min_p = fields.number("min_p", 0, 1, llama ? 0.05 : 0);
  // vLLM writes -1 for "all".
  sampling.top_k = std::max<int64_t>(0, fields.integer("top_k", -1, kAnyCount, llama ? 40 : 0));
  const char* const repetition = llama ? "repeat_penalty" : "repetition_penalty";
  sampling.repetition_penalty = fields.number(repetition, 1e-3, 100, 1);
  sampling.presence_penalty = fields.number("presence_penalty", -2, 2, 0);
  sampling.frequency_penalty = fields.number("frequency_penalty", -2, 2, 0);
  parse_logit_bias(fields.find("logit_bias"), sampling, limits);
  if (fields.find("seed")) {
    const int64_t seed = fields.integer("seed", INT64_MIN, INT64_MAX, 0);
    if (!llama || seed >= 0) request.seed = uint64_t(seed);  // llama-server: -1 is a random one
  }
}

void parse_ending(Fields& fields, CompletionRequest& request, const ApiLimits& limits) {
  request.stop = parse_stop(fields.find("stop"), "stop", limits);
  if (const json* ids = fields.find("stop_token_ids")) {
    if (!ids->is_array() || ids->size() > 128)
      refuse("stop_token_ids", "up to 128 token ids", shown_json(*ids));
    request.params.stop_token_ids = parse_ids(*ids, "stop_token_ids", limits);
  }
  request.params.ignore_eos = fields.boolean("ignore_eos", false);
  request.params.min_tokens = fields.integer("min_tokens", 0, kAnyCount, 0);
  request.params.share_prefix = fields.boolean("cache_prompt", true);
  request.return_token_ids =
      fields.boolean(request.dialect == Dialect::llama ? "return_tokens" : "return_token_ids", false);
  request.stream = fields.boolean("stream", false);
  if (const json* options = fields.find("stream_options")) {
    if (!options->is_object()) refuse("stream_options", "an object", shown_json(*options));
    request.include_usage = Fields(*options).boolean("include_usage", false);
  }
}

void parse_lengths(Fields& fields, CompletionRequest& request) {
  switch (request.dialect) {
    case Dialect::completions:
      // Not given: 16 or what the context leaves, see tokens_to_generate.
      request.params.max_tokens = fields.integer("max_tokens", 0, kAnyCount, -1);
      return;
    case Dialect::chat:
      request.params.max_tokens = fields.integer("max_completion_tokens", 1, kAnyCount,
                                                 fields.integer("max_tokens", 1, kAnyCount, -1));
      return;
    case Dialect::llama:
      request.params.max_tokens =
          fields.integer("n_predict", -2, kAnyCount, fields.integer("max_tokens", 0, kAnyCount, -1));
      request.params.max_tokens = std::max<int64_t>(-1, request.params.max_tokens);
      return;
  }
}

void parse_logprobs(Fields& fields, CompletionRequest& request, const ApiLimits& limits) {
  switch (request.dialect) {
    case Dialect::completions:
      request.logprobs = int(fields.integer("logprobs", 0, limits.max_logprobs, -1));
      return;
    case Dialect::chat: {
      const bool wanted = fields.boolean("logprobs", false);
      const int most = std::max(kMaxChatLogprobs, limits.max_logprobs);
      const int top = int(fields.integer("top_logprobs", 0, most, 0));
      if (top > 0 && !wanted) refuse("top_logprobs", "logprobs to be true beside it", "logprobs false");
      request.logprobs = wanted ? top : -1;
      return;
    }
    case Dialect::llama:
      request.logprobs = int(fields.integer("n_probs", 0, limits.max_logprobs, 0));
      if (request.logprobs == 0) request.logprobs = -1;
      return;
  }
}

void parse_choices(Fields& fields, CompletionRequest& request, const ApiLimits& limits) {
  request.n = fields.integer("n", 1, limits.max_choices, 1);
  request.best_of = request.n;
  if (request.dialect == Dialect::completions && fields.find("best_of")) {
    request.best_of = fields.integer("best_of", 1, std::max(request.n, kMaxBestOf), 1);
    if (request.best_of < request.n) refuse("best_of", str("at least n, ", request.n), str(request.best_of));
    if (request.stream && request.best_of > request.n)
      refuse("best_of", "no more than n when streaming", str(request.best_of));
  }
}

void check(const CompletionRequest& request, const ApiLimits& limits) {
  if (request.sequences() > limits.max_choices)
    refuse(request.prompts.size() > 1 ? "prompt" : "n",
           str("at most ", limits.max_choices, " choices of all prompts together"), str(request.sequences()));
  if (request.params.max_tokens == 0 && !request.echo && request.dialect == Dialect::completions)
    refuse("max_tokens", "at least 1 without echo", "0");
  for (const Prompt& prompt : request.prompts) {
    const int64_t count = tokens_to_generate(request, prompt, limits);
    if (request.params.min_tokens > count)
      refuse("min_tokens", str("at most max_tokens, ", count), str(request.params.min_tokens));
  }
}

void check_model(Fields& fields, const ApiLimits& limits) {
  const std::string name = fields.string("model");
  if (limits.strict_model && !name.empty() && name != limits.model)
    throw ApiError(404,
                   str("the model ", shown(name), " does not exist; this server has ", shown(limits.model)),
                   "model", "model_not_found");
}

void parse_prompt(Fields& fields, CompletionRequest& request, const ApiLimits& limits) {
  if (request.dialect != Dialect::chat) {
    request.prompts = PromptReader(limits, request.echo).read(fields.find("prompt"));
    return;
  }
  if (!limits.chat)
    throw ApiError(400,
                   "this model has no chat template: start the server with --chat-template FILE, or use "
                   "/v1/completions",
                   "messages", "no_chat_template");
  const json* const messages = fields.find("messages");
  request.prompts = {
      PromptReader(limits, false).from_text(limits.chat->apply(messages ? *messages : json()))};
  request.stop.insert(request.stop.end(), limits.chat->stop().begin(), limits.chat->stop().end());
}

}  // namespace

CompletionRequest parse_completion(Dialect dialect, std::string_view body, const ApiLimits& limits) {
  const json object = parse_request_object(body);
  Fields fields(object);
  CompletionRequest request{.dialect = dialect};
  check_model(fields, limits);
  if (const json* suffix = fields.find("suffix"); suffix && *suffix != "")
    throw ApiError(400, "suffix is not supported: the model only continues text", "suffix",
                   "unsupported_parameter");
  if (fields.find("user")) fields.string("user");
  parse_sampling(fields, request, limits);
  parse_ending(fields, request, limits);
  parse_lengths(fields, request);
  parse_logprobs(fields, request, limits);
  parse_choices(fields, request, limits);
  if (dialect == Dialect::completions) request.echo = fields.boolean("echo", false);
  parse_prompt(fields, request, limits);
  check(request, limits);
  fields.ignore({"id_slot", "timings_per_token", "samplers", "store", "metadata", "service_tier"});
  request.unknown = fields.unknown();
  return request;
}

int64_t tokens_to_generate(const CompletionRequest& request, const Prompt& prompt, const ApiLimits& limits) {
  const auto count = int64_t(prompt.ids.size());
  const int64_t room = limits.context - count, wanted = request.params.max_tokens;
  const bool given = wanted >= 0;
  if (room < 0 || (given ? wanted > room : room == 0))
    throw ApiError(400,
                   str("the context holds ", limits.context, " tokens, but the prompt has ", count,
                       given ? str(" and max_tokens asks for ", wanted, " more") : ""),
                   "prompt", "context_length_exceeded",
                   {{"n_prompt_tokens", count}, {"n_ctx", limits.context}});
  constexpr int64_t kDefault = 16;  // OpenAI's
  if (given) return wanted;
  return request.dialect == Dialect::completions ? std::min(kDefault, room) : room;
}

}  // namespace ballast::server
