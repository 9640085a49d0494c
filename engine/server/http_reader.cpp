#include "engine/server/http_reader.h"

#include <algorithm>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>

#include "kernels/check.h"

namespace ballast::server {

namespace http = boost::beast::http;
using boost::beast::string_view;
using boost::system::error_code;

// A line between chunks (its size, extensions, trailers): what a client may make us hold.
constexpr size_t kMaxChunkLine = 4096;

class RequestReader::Parser : public http::basic_parser<true> {
 public:
  explicit Parser(RequestReader& reader) : reader_(reader) {
    eager(true);
    header_limit(uint32_t(reader.limits_.head + 1));
    body_limit(std::max(reader.limits_.body, reader.limits_.image_body));
  }

  int version() const { return version_; }
  size_t fields(std::string_view name) const {
    size_t count = 0;
    for (const auto& [known, value] : reader_.request_.headers) count += known == name;
    return count;
  }

 private:
  static std::string text(string_view view) { return {view.data(), view.size()}; }

  void on_request_impl(http::verb, string_view method, string_view target, int version,
                       error_code&) override {
    version_ = version;
    reader_.request_.method = text(method);
    reader_.request_.path = text(target);
  }
  void on_field_impl(http::field, string_view name, string_view value, error_code& ec) override {
    if (in_body_) return;  // trailers say nothing that we use
    if (reader_.request_.headers.size() == reader_.limits_.headers) {
      ec = http::error::header_limit;
      return;
    }
    std::string lower = text(name);
    for (char& letter : lower)
      if (letter >= 'A' && letter <= 'Z') letter = char(letter + ('a' - 'A'));
    reader_.request_.headers.emplace_back(std::move(lower), text(value));
  }
  void on_header_impl(error_code&) override { in_body_ = true; }
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(string_view body, error_code&) override { return keep(body); }
  void on_chunk_header_impl(uint64_t, string_view, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, string_view body, error_code&) override { return keep(body); }
  void on_finish_impl(error_code&) override {}
  void on_response_impl(int, string_view, int, error_code&) override {}

  size_t keep(string_view body) {
    reader_.request_.body.append(body.data(), body.size());
    return body.size();
  }

  RequestReader& reader_;
  int version_ = 11;
  bool in_body_ = false;
};

RequestReader::RequestReader(const ReadLimits& limits)
    : limits_(limits), parser_(std::make_unique<Parser>(*this)) {}

RequestReader::~RequestReader() = default;

void RequestReader::fail(int status, std::string reason) {
  state_ = State::failed;
  status_ = status;
  reason_ = std::move(reason);
}

size_t RequestReader::feed(std::string_view bytes) {
  size_t taken = 0;
  if (state_ == State::head) taken = feed_head(bytes);
  if (state_ == State::body && (taken < bytes.size() || !pending_.empty()))
    taken += feed_body(bytes.substr(taken));
  return taken;
}

// False, and failed, when no request can contain `byte` at this place.
bool RequestReader::check_byte(char byte) {
  const char before = head_.empty() ? '\0' : head_.back();
  if (head_.empty() && !(byte >= 'A' && byte <= 'Z') && !(byte >= 'a' && byte <= 'z')) {
    fail(400, "this is not an HTTP request (a TLS connection to a plain port?)");
  } else if (byte == '\0' || (byte == '\n') != (before == '\r')) {
    fail(400, "lines of a request must end with carriage return and line feed");
  } else if (before == '\n' && (byte == ' ' || byte == '\t')) {
    fail(400, "a header must not go on in a second line");
  }
  return state_ != State::failed;
}

size_t RequestReader::feed_head(std::string_view bytes) {
  size_t at = 0;
  // One empty line before a request is customary.
  constexpr std::string_view kEmptyLine = "\r\n";
  for (; !started_ && at < bytes.size() && skipped_ < kEmptyLine.size() && bytes[at] == kEmptyLine[skipped_];
       ++at)
    ++skipped_;
  for (; at < bytes.size(); ++at) {
    started_ = true;
    if (!check_byte(bytes[at])) return at;
    head_ += bytes[at];
    if (head_.size() > limits_.request_line && head_.find('\r') >= limits_.request_line) {
      fail(414, str("the request line is longer than ", limits_.request_line, " bytes"));
      return at;
    }
    if (head_.size() > limits_.head) {
      fail(431, str("request line and headers are longer than ", limits_.head, " bytes"));
      return at;
    }
    if (head_.ends_with("\r\n\r\n")) {
      parse_head();
      return at + 1;
    }
  }
  return at;
}

void RequestReader::parse_head() {
  error_code ec;
  parser_->put(boost::asio::buffer(head_), ec);
  if (ec == http::error::header_limit) return fail(431, str("more than ", limits_.headers, " headers"));
  if (ec == http::error::body_limit) return fail_for_length();
  if (ec == http::error::bad_version) return fail(505, "expected HTTP/1.1 or HTTP/1.0");
  if (ec && ec != http::error::need_more) return fail(400, "malformed request: " + ec.message());
  if (!parser_->is_header_done()) return fail(400, "malformed request");
  check_head();
  if (state_ == State::failed) return;
  head_.clear();
  head_.shrink_to_fit();
  state_ = State::body;
  if (parser_->is_done()) finish();
}

void RequestReader::check_head() {
  chunks_ = parser_->version() >= 11;
  keep_alive_ = parser_->keep_alive();
  const size_t lengths = parser_->fields("content-length"), encodings = parser_->fields("transfer-encoding");
  if (lengths + encodings > 1) return fail(400, "the length of the body is given twice");
  if (encodings == 1 && !same_ignoring_case(request_.header("transfer-encoding"), "chunked"))
    return fail(501, "the only transfer encoding understood is chunked");
  if (lengths == 1) {
    const std::string_view length = request_.header("content-length");
    if (length.empty() || length.find_first_not_of("0123456789") != length.npos)
      return fail(400, "Content-Length is not a number");
    announced_ = parser_->content_length().value_or(0);
    if (announced_ > body_limit()) return fail_for_length();
  }
  parser_->body_limit(body_limit());
  if (parser_->fields("host") + (chunks_ ? 0 : 1) < 1 || parser_->fields("host") > 1)
    return fail(400, "expected one Host header");
  const std::string_view expect = request_.header("expect");
  if (!expect.empty() && !same_ignoring_case(expect, "100-continue"))
    return fail(417, "the only expectation understood is 100-continue");
  expects_continue_ = !expect.empty() && chunks_ && !parser_->is_done();

  std::string target = std::move(request_.path);
  if (target.starts_with("http://")) {
    const size_t path = target.find('/', 7);
    target = path == target.npos ? "/" : target.substr(path);
  }
  if (!target.starts_with('/') && target != "*") return fail(400, "malformed request target");
  target = target.substr(0, target.find('#'));
  const size_t question = target.find('?');
  request_.path = target.substr(0, question);
  if (question != target.npos) request_.query = target.substr(question + 1);
}

size_t RequestReader::feed_body(std::string_view bytes) {
  const size_t held = pending_.size();
  pending_ += bytes;
  size_t used = 0;
  error_code ec;
  while (!parser_->is_done() && used < pending_.size() && !ec)
    used += parser_->put(boost::asio::buffer(pending_.data() + used, pending_.size() - used), ec);
  if (parser_->is_done()) {
    pending_.clear();
    finish();
    return used - std::min(used, held);
  }
  if (ec == http::error::body_limit) {
    fail_for_length();
  } else if (ec && ec != http::error::need_more) {
    fail(400, "malformed body: " + ec.message());
  } else if (pending_.size() - used > kMaxChunkLine) {
    fail(400, "malformed body: a chunk's header is too long");
  }
  pending_.erase(0, used);
  return bytes.size();
}

uint64_t RequestReader::body_limit() const {
  constexpr std::string_view kImage = "image/";
  const bool image = same_ignoring_case(request_.header("content-type").substr(0, kImage.size()), kImage);
  return image ? std::max(limits_.body, limits_.image_body) : limits_.body;
}

void RequestReader::fail_for_length() {
  fail(413, str("the body is longer than ", body_limit(), " bytes"));
}

void RequestReader::finish() {
  state_ = State::done;
}

bool RequestReader::take_continue() {
  return std::exchange(expects_continue_, false) && state_ == State::body && request_.body.empty();
}

}  // namespace ballast::server
