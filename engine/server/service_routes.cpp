#include "engine/server/service_routes.h"

#include <algorithm>

#include "engine/io/json.h"
#include "engine/server/api_error.h"
#include "engine/server/token_requests.h"

namespace ballast::server {
namespace {

using nlohmann::json;

bool matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with('*')) return pattern == path;
  pattern.remove_suffix(1);
  return path.size() > pattern.size() && path.starts_with(pattern);
}

void check_media_type(const HttpRequest& request, bool images) {
  std::string_view type = request.header("content-type");
  type = type.substr(0, type.find(';'));
  while (type.ends_with(' ')) type.remove_suffix(1);
  if (type.empty()) return;
  if (images && !same_ignoring_case(type, "image/jpeg") && !same_ignoring_case(type, "image/png"))
    throw ApiError(415, "expected Content-Type: image/jpeg or image/png, and the image itself as the body");
  if (!images && !same_ignoring_case(type, "application/json"))
    throw ApiError(415, "expected Content-Type: application/json");
}

}  // namespace

const Service::Route* Service::find_route(const HttpRequest& request, bool& known_path) {
  constexpr Route::Of kAny = Route::Of::any, kText = Route::Of::text;
  static constexpr Route kRoutes[] = {
      {"POST", "/v1/completions", &Service::completions, kText},
      {"POST", "/v1/chat/completions", &Service::chat_completions, kText},
      {"POST", "/completion", &Service::llama_completion, kText},
      {"POST", "/v1/classify", &Service::classify, Route::Of::images},
      {"GET", "/v1/models", &Service::models},
      {"GET", "/v1/models/*", &Service::models},
      {"GET", "/health", &Service::health, kAny, true, true},
      {"GET", "/v1/health", &Service::health, kAny, true, true},
      {"GET", "/", &Service::page, kAny, true, true},
      {"GET", "/index.html", &Service::page, kAny, true, true},
      {"GET", "/metrics", &Service::metrics_text, kAny, false, true},
      {"GET", "/version", &Service::version, kAny, true, true},
      {"GET", "/props", &Service::props},
      {"GET", "/slots", &Service::slots, kText},
      {"GET", "/tokenizer_info", &Service::tokenizer_info, kText},
      {"POST", "/tokenize", &Service::tokenize, kText},
      {"POST", "/detokenize", &Service::detokenize, kText},
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
  check_state(*found);
  check_model(*found);
  if (request.method == "POST") check_media_type(request, found->of == Route::Of::images);
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
  EngineStatus status;
  int64_t images = 0;
  if (state_ != State::loading && loop_) status = loop_->status();
  if (state_ != State::loading && image_loop_) {
    const ImageLoop::Status of_images = image_loop_->status();
    status.running = of_images.running, status.waiting = of_images.waiting, images = of_images.classified;
  }
  answer(request, reply,
         {.body = metrics_.text(status, images, http_.counters(), options_.version),
          .content_type = "text/plain; version=0.0.4; charset=utf-8"});
}

void Service::version(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  answer(request, reply, json_response({{"version", options_.version}}));
}

json Service::model_object() const {
  json model = {{"id", model_.name},
                {"object", "model"},
                {"created", created_},
                {"owned_by", "ballast"},
                {"meta", model_.facts}};
  if (model_.engine) model["max_model_len"] = job_context_->limits.context;
  return model;
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
  json props = {{"model_alias", model_.name},
                {"model_path", model_.name},
                {"total_slots", model_.slots},
                {"build_info", options_.version},
                {"facts", model_.facts}};
  if (loop_) {
    const EngineStatus status = loop_->status();
    props["chat_template"] = "";
    props["default_generation_settings"] = {{"n_ctx", job_context_->limits.context}};
    props["load"] = {{"running", status.running},
                     {"waiting", status.waiting},
                     {"generated_tokens", status.counters.generated_tokens},
                     {"cache_usage", double(status.used_pages) / double(std::max<int64_t>(1, status.pages))}};
  } else {
    const ImageLoop::Status status = image_loop_->status();
    props["load"] = {
        {"running", status.running}, {"waiting", status.waiting}, {"classified_images", status.classified}};
  }
  answer(request, reply, json_response(props));
}

void Service::slots(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  if (!options_.slots) throw ApiError(501, "slots are switched off");
  json list = json::array();
  const int64_t running = loop_->status().running;
  for (int64_t i = 0; i < model_.slots; ++i)
    list.push_back({{"id", i}, {"n_ctx", job_context_->limits.context}, {"is_processing", i < running}});
  answer(request, reply, json_response(list));
}

void Service::tokenizer_info(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
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
  answer_later(std::move(request), reply, [this](const HttpRequest& http) {
    return json_response(tokenize_request(http.body, job_context_->limits));
  });
}

void Service::detokenize(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  answer_later(std::move(request), reply, [this](const HttpRequest& http) {
    return json_response(detokenize_request(http.body, job_context_->limits));
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

}  // namespace ballast::server
