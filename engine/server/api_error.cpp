#include "engine/server/api_error.h"

namespace ballast::server {
namespace {

struct Kind {
  int status;
  const char *type, *code;
};

// What goes with a status when the error does not say it better.
constexpr Kind kKinds[] = {
    {400, "invalid_request_error", ""},
    {401, "authentication_error", "invalid_api_key"},
    {403, "permission_error", ""},
    {404, "not_found_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {408, "invalid_request_error", "request_timeout"},
    {413, "invalid_request_error", "request_too_large"},
    {414, "invalid_request_error", "uri_too_long"},
    {415, "invalid_request_error", "unsupported_media_type"},
    {417, "invalid_request_error", "expectation_failed"},
    {429, "overloaded_error", "overloaded"},
    {431, "invalid_request_error", "headers_too_large"},
    {500, "server_error", "internal_error"},
    {501, "not_supported_error", "not_supported"},
    {503, "unavailable_error", "unavailable"},
    {505, "invalid_request_error", "http_version"},
};

Kind kind_of(int status) {
  for (const Kind& kind : kKinds)
    if (kind.status == status) return kind;
  return {status, "server_error", ""};
}

}  // namespace

nlohmann::json ApiError::json() const {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::json(nullptr) : nlohmann::json(text);
  };
  const Kind kind = kind_of(status_);
  nlohmann::json error = extra_;
  error["message"] = what();
  error["type"] = kind.type;
  error["param"] = or_null(param_);
  error["code"] = or_null(code_.empty() ? kind.code : code_);
  return {{"error", std::move(error)}};
}

HttpResponse ApiError::response() const {
  HttpResponse response = json_response(json(), status_);
  if (status_ == 429) response.headers = {{"Retry-After", "1"}};
  if (status_ == 503) response.headers = {{"Retry-After", "5"}};
  // The OpenAI clients try every 5xx again.
  if (status_ == 501) response.headers = {{"x-should-retry", "false"}};
  if (status_ == 401) response.headers = {{"WWW-Authenticate", "Bearer"}};
  return response;
}

std::string to_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

HttpResponse json_response(const nlohmann::json& value, int status) {
  return {.status = status, .body = to_text(value)};
}

}  // namespace ballast::server
