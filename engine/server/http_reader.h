// One request from a stream of bytes, with every limit applied while the bytes come in.
//
// Syntax is Boost.Beast's parser (RFC 9112). Stricter than it, because what two readers of one stream take
// differently lets requests be smuggled: a line feed without carriage return, folded headers, a length given
// twice, a length beside a transfer encoding, and encodings other than `chunked` are refused.
#pragma once

#include <memory>

#include "engine/server/http_message.h"

namespace ballast::server {

struct ReadLimits {
  size_t request_line = 8 << 10;  ///< bytes
  size_t head = 16 << 10;         ///< bytes of request line and headers
  size_t headers = 100;           ///< fields
  uint64_t body = 4 << 20;        ///< bytes
  uint64_t image_body = 0;        ///< bytes of a body whose type is image/…, where more than `body`
};

class RequestReader {
 public:
  enum class State { head, body, done, failed };

  explicit RequestReader(const ReadLimits& limits);
  ~RequestReader();

  /// Takes bytes up to the end of the request and returns how many it took: all of them unless it is done or
  /// failed.
  size_t feed(std::string_view bytes);

  State state() const { return state_; }
  /// True once the first byte of a request was there.
  bool started() const { return started_; }
  /// True once, when the client waits for `100 Continue` before it sends the body.
  bool take_continue();
  /// Body bytes so far, and how many the client announced (0: unknown).
  uint64_t body_bytes() const { return request_.body.size(); }
  uint64_t announced_bytes() const { return announced_; }
  /// When failed: 400, 413, 414, 417, 431, 501 or 505, and why. The connection cannot be used any further.
  int status() const { return status_; }
  const std::string& reason() const { return reason_; }

  /// When done. `keep_alive`: the connection may carry another request; `chunks`: the client knows chunked bodies.
  bool keep_alive() const { return keep_alive_; }
  bool chunks() const { return chunks_; }
  const std::string& method() const { return request_.method; }
  HttpRequest take() { return std::move(request_); }

 private:
  class Parser;
  friend class Parser;
  size_t feed_head(std::string_view bytes);
  size_t feed_body(std::string_view bytes);
  uint64_t body_limit() const;
  bool check_byte(char byte);
  void parse_head();
  void check_head();
  void fail_for_length();
  void finish();
  void fail(int status, std::string reason);

  ReadLimits limits_;
  std::unique_ptr<Parser> parser_;
  HttpRequest request_;
  State state_ = State::head;
  bool started_ = false, expects_continue_ = false, keep_alive_ = false, chunks_ = true;
  std::string head_, pending_;  ///< pending_: body bytes that the parser wants to see together with more
  size_t skipped_ = 0;          ///< bytes before the request
  uint64_t announced_ = 0;
  int status_ = 0;
  std::string reason_;
};

}  // namespace ballast::server
