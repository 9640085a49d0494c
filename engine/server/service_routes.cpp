#include "engine/server/service_routes.h"

#include <algorithm>

#include "engine/io/json.h"
#include "engine/server/api_error.h"

namespace ballast::server {
namespace {

using nlohmann::json;

bool matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with('*')) return pattern == path;
  pattern.remove_suffix(1);
  return path.size() > pattern.size() && path.starts_with(pattern);
}

json parse_object(const std::string& body) {
  json object;
  try {
    object = parse_json(body, "request");
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "", "invalid_json");
  }
  if (!object.is_object()) throw ApiError(400, "request: expected an object, got " + shown_json(object));
  return object;
}

// vLLM's name for a field or llama-server's.
const json& either(const json& object, const char* one, const char* other) {
  for (const char* key : {one, other})
    if (const json* value = json_find(object, key, "request")) return *value;
  throw ApiError(400, str("request: expected the field '", one, "' or '", other, "'"), one);
}

}  // namespace

const Service::Route* Service::find_route(const HttpRequest& request, bool& known_path) {
  static constexpr Route kRoutes[] = {
      {"POST", "/v1/completions", &Service::completions},
      {"POST", "/v1/chat/completions", &Service::chat_completions},
      {"POST", "/completion", &Service::llama_completion},
      {"POST", "/v1/classify", &Service::classify},
      {"GET", "/v1/models", &Service::models},
      {"GET", "/v1/models/*", &Service::models},
      {"GET", "/health", &Service::health, true, true},
      {"GET", "/v1/health", &Service::health, true, true},
      {"GET", "/", &Service::page, true, true},
      {"GET", "/index.html", &Service::page, true, true},
      {"GET", "/metrics", &Service::metrics_text, false, true},
      {"GET", "/version", &Service::version, true, true},
      {"GET", "/props", &Service::props},
      {"GET", "/slots", &Service::slots},
      {"GET", "/tokenizer_info", &Service::tokenizer_info},
      {"POST", "/tokenize", &Service::tokenize},
      {"POST", "/detokenize", &Service::detokenize},
  };
  const std::string_view method = request.method == "HEAD" ? "GET" : std::string_view(request.method);
  for (const Route& route : kRoutes) {
    if (!matches(route.path, request.path)) continue;
    known_path = true;
    if (route.method == method) return &route;
  }
  return nullptr;
}

void Service::route(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  add_cors(request, *reply);
  if (request.method == "OPTIONS") return preflight(request, reply);
  bool known_path = false;
  const Route* const found = find_route(request, known_path);
  if (!found && !known_path) throw ApiError(404, "no such route");
  if (!found) {
    HttpRequest other = request;
    other.method = "GET";
    bool ignored = false;
    reply->headers.emplace_back("Allow", find_route(other, ignored) ? "GET, HEAD, OPTIONS" : "POST, OPTIONS");
    throw ApiError(405, "this route has another method");
  }
  identify(request, found->open_to_all);
  if (request.method == "POST") {
    std::string_view type = request.header("content-type");
    type = type.substr(0, type.find(';'));
    while (type.ends_with(' ')) type.remove_suffix(1);
    const bool image = found->handler == &Service::classify && type.starts_with("image/");
    if (!type.empty() && !image && !same_ignoring_case(type, "application/json"))
      throw ApiError(415, "expected Content-Type: application/json");
  }
  check_state(*found);
  (this->*found->handler)(request, reply);
}

void Service::preflight(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  HttpResponse response{.content_type = "text/plain"};
  response.headers = {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                      {"Access-Control-Allow-Headers", "authorization, content-type, x-api-key"},
                      {"Access-Control-Max-Age", "86400"}};
  // What the OpenAI client libraries send along in a browser.
  for (const char* name : {"x-stainless-arch", "x-stainless-lang", "x-stainless-os",
                           "x-stainless-package-version", "x-stainless-retry-count", "x-stainless-runtime",
                           "x-stainless-runtime-version", "x-stainless-timeout"})
    response.headers[1].second += str(", ", name);
  answer(request, reply, std::move(response));
}

void Service::health(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  const char* const names[] = {"loading", "ok", "draining"};
  answer(request, reply, json_response({{"status", names[int(state_)]}}, state_ == State::ready ? 200 : 503));
}

void Service::metrics_text(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!options_.metrics) throw ApiError(501, "metrics are switched off");
  const EngineStatus status = state_ != State::loading && loop_ ? loop_->status() : EngineStatus();
  answer(request, reply,
         {.body = metrics_.text(status, http_.counters(), options_.version),
          .content_type = "text/plain; version=0.0.4; charset=utf-8"});
}

void Service::version(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  answer(request, reply, json_response({{"version", options_.version}}));
}

json Service::model_object() const {
  return {{"id", model_.name},
          {"object", "model"},
          {"created", created_},
          {"owned_by", "ballast"},
          {"max_model_len", job_context_->limits.context},
          {"meta", model_.facts}};
}

void Service::models(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  constexpr std::string_view kOne = "/v1/models/";
  if (!request.path.starts_with(kOne))
    return answer(request, reply,
                  json_response({{"object", "list"}, {"data", json::array({model_object()})}}));
  const std::string name = percent_decoded(std::string_view(request.path).substr(kOne.size()));
  if (name != model_.name)
    throw ApiError(404, str("the model ", shown(name), " does not exist"), "model", "model_not_found");
  answer(request, reply, json_response(model_object()));
}

void Service::props(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  const EngineStatus status = loop_ ? loop_->status() : EngineStatus();
  answer(request, reply,
         json_response(
             {{"model_alias", model_.name},
              {"model_path", model_.name},
              {"total_slots", model_.slots},
              {"build_info", options_.version},
              {"chat_template", ""},
              {"default_generation_settings", {{"n_ctx", job_context_->limits.context}}},
              {"facts", model_.facts},
              {"load",
               {{"running", status.running},
                {"waiting", status.waiting},
                {"generated_tokens", status.counters.generated_tokens},
                {"cache_usage", double(status.used_pages) / double(std::max<int64_t>(1, status.pages))}}}}));
}

void Service::slots(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!options_.slots) throw ApiError(501, "slots are switched off");
  json list = json::array();
  const int64_t running = loop_ ? loop_->status().running : 0;
  for (int64_t i = 0; i < model_.slots; ++i)
    list.push_back({{"id", i}, {"n_ctx", job_context_->limits.context}, {"is_processing", i < running}});
  answer(request, reply, json_response(list));
}

void Service::tokenizer_info(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!model_.tokenizer) throw ApiError(501, "this model has no tokenizer");
  const Tokenizer& tokenizer = *model_.tokenizer;
  const auto text_of = [&](std::optional<int32_t> id) {
    return id ? json(CompletionFormat::token_text(tokenizer, *id)) : json(nullptr);
  };
  answer(request, reply,
         json_response({{"vocab_size", tokenizer.vocabulary_size()},
                        {"bos_token", text_of(tokenizer.bos_id())},
                        {"eos_token", text_of(tokenizer.eos_id())},
                        {"bos_token_id", tokenizer.bos_id() ? json(*tokenizer.bos_id()) : json(nullptr)},
                        {"eos_token_id", tokenizer.eos_id() ? json(*tokenizer.eos_id()) : json(nullptr)},
                        {"chat_template", nullptr}}));
}

void Service::tokenize(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!model_.tokenizer) throw ApiError(501, "this model has no tokenizer");
  answer_later(std::move(request), reply, [this](const HttpRequest& http) {
    const Tokenizer& tokenizer = *model_.tokenizer;
    const json object = parse_object(http.body);
    const json& text = either(object, "prompt", "content");
    if (!text.is_string()) throw ApiError(400, "expected a string, got " + shown_json(text), "prompt");
    const bool llama = !object.contains("prompt");
    const bool special = json_bool(object, llama ? "add_special" : "add_special_tokens", "request", !llama);
    const auto ids = tokenizer.encode(text.get_ref<const std::string&>(), special);
    json answer = {{"tokens", ids}, {"count", ids.size()}, {"max_model_len", job_context_->limits.context}};
    json strings = json::array(), pieces = json::array();
    for (const int32_t id : ids) {
      strings.push_back(CompletionFormat::token_text(tokenizer, id));
      pieces.push_back({{"id", id}, {"piece", strings.back()}});
    }
    if (json_bool(object, "return_token_strs", "request", false)) answer["token_strs"] = std::move(strings);
    if (json_bool(object, "with_pieces", "request", false)) answer["tokens"] = std::move(pieces);
    return json_response(answer);
  });
}

void Service::detokenize(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!model_.tokenizer) throw ApiError(501, "this model has no tokenizer");
  answer_later(std::move(request), reply, [this](const HttpRequest& http) {
    const json object = parse_object(http.body);
    const json& tokens = json_array(object, "tokens", "request");
    std::vector<int32_t> ids;
    for (const json& id : tokens) {
      if (!id.is_number_integer() || id < 0 || id >= model_.usable_vocab)
        throw ApiError(
            400, str("expected token ids from 0 to ", model_.usable_vocab - 1, ", got ", shown_json(id)),
            "tokens");
      ids.push_back(id);
    }
    const std::string text = to_valid_utf8(model_.tokenizer->decode(ids, false));
    return json_response({{"prompt", text}, {"content", text}});
  });
}

void Service::completions(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  complete(Dialect::completions, request, reply);
}

void Service::chat_completions(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  complete(Dialect::chat, request, reply);
}

void Service::llama_completion(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  complete(Dialect::llama, request, reply);
}

void Service::classify(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!model_.classify) throw ApiError(501, "this model does not classify images");
  answer_later(std::move(request), reply,
               [this](const HttpRequest& http) { return json_response(model_.classify(http)); });
}

}  // namespace ballast::server
