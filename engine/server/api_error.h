// Errors as the OpenAI API words them: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "engine/server/http_message.h"

namespace ballast::server {

/// A request that is answered with an error. what() is the message.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "",
           nlohmann::json extra = nlohmann::json::object())
      : std::runtime_error(message),
        status_(status),
        param_(std::move(param)),
        code_(std::move(code)),
        extra_(std::move(extra)) {}

  int status() const { return status_; }
  /// The body. `extra` members stand beside `message`.
  nlohmann::json json() const;
  /// With Retry-After where the client should try again.
  HttpResponse response() const;

 private:
  int status_;
  std::string param_, code_;  ///< empty: null
  nlohmann::json extra_;
};

/// JSON as response body; ill-formed UTF-8 is replaced.
std::string to_text(const nlohmann::json& value);
HttpResponse json_response(const nlohmann::json& value, int status = 200);

}  // namespace ballast::server
