// Requests and responses of HTTP/1.1 (RFC 9110, 9112) as values, without the transport.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast::server {

using Clock = std::chrono::steady_clock;
using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;   ///< as sent, without the query
  std::string query;  ///< behind the '?'
  Headers headers;    ///< names in lower case, in the order they came
  std::string body;
  std::string peer;  ///< numeric address of the client; "unix" for one that came through a Unix socket
  std::string id;    ///< names this request in logs and in `x-request-id`
  Clock::time_point received{};

  /// The first header of this name (lower case), or an empty string.
  std::string_view header(std::string_view name) const;
  /// The first value of this name in the query (a=1&b=2), as sent, or an empty string.
  std::string_view query_value(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;
  bool close = false;  ///< the connection ends with this response
};

/// "Not Found"
std::string_view reason_phrase(int status);
/// `text` with %XX replaced; sequences that are not two hexadecimal digits stay.
std::string percent_decoded(std::string_view text);
/// True if the strings differ in the case of ASCII letters only.
bool same_ignoring_case(std::string_view a, std::string_view b);
/// Status line and headers. `length` bytes of body follow; -1: a body in chunks; -2: one that ends with the
/// connection (for HTTP/1.0, which has no chunks).
std::string head_text(const HttpResponse& response, int64_t length, bool keep_alive);
/// One chunk of a body in chunks; an empty one ends it.
std::string chunk_text(std::string_view bytes);

}  // namespace ballast::server
