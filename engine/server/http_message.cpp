#include "engine/server/http_message.h"

#include <algorithm>
#include <charconv>
#include <iterator>

namespace ballast::server {
namespace {

constexpr std::pair<int, std::string_view> kReasons[] = {
    {100, "Continue"},
    {200, "OK"},
    {204, "No Content"},
    {304, "Not Modified"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {417, "Expectation Failed"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {503, "Service Unavailable"},
    {505, "HTTP Version Not Supported"},
};

char lower(char letter) {
  return letter >= 'A' && letter <= 'Z' ? char(letter + ('a' - 'A')) : letter;
}

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [known, value] : headers)
    if (known == name) return value;
  return {};
}

std::string_view HttpRequest::query_value(std::string_view name) const {
  for (std::string_view rest = query; !rest.empty();) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
    if (pair.size() > name.size() && pair.starts_with(name) && pair[name.size()] == '=')
      return pair.substr(name.size() + 1);
  }
  return {};
}

std::string_view reason_phrase(int status) {
  for (const auto& [known, reason] : kReasons)
    if (known == status) return reason;
  return "Unknown";
}

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 3, value, 16).ptr == text.data() + i + 3) {
      decoded += char(value);
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

bool same_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return lower(x) == lower(y); });
}

std::string head_text(const HttpResponse& response, int64_t length, bool keep_alive) {
  std::string text = "HTTP/1.1 " + std::to_string(response.status) + " ";
  text += reason_phrase(response.status);
  if (!response.content_type.empty()) text += "\r\nContent-Type: " + response.content_type;
  if (length >= 0) text += "\r\nContent-Length: " + std::to_string(length);
  if (length == -1) text += "\r\nTransfer-Encoding: chunked";
  for (const auto& [name, value] : response.headers) text += "\r\n" + name + ": " + value;
  text += keep_alive ? "\r\nConnection: keep-alive\r\n\r\n" : "\r\nConnection: close\r\n\r\n";
  return text;
}

std::string chunk_text(std::string_view bytes) {
  char size[20];
  const auto end = std::to_chars(size, std::end(size), bytes.size(), 16).ptr;
  std::string text(size, end);
  text += "\r\n";
  text += bytes;
  text += "\r\n";
  return text;
}

}  // namespace ballast::server
