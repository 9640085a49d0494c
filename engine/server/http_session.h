// One connection. Internal to the transport: includes Asio.
#pragma once

#include <array>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>

#include "engine/server/http_server.h"

namespace ballast::server {

namespace asio = boost::asio;
using boost::system::error_code;
using Socket = asio::generic::stream_protocol::socket;

/// What all sessions of a server share.
struct SessionContext {
  const HttpOptions& options;
  Handler handler;
  std::function<void(const std::shared_ptr<class Session>&)> on_closed;
  HttpCounters counters;
  uint64_t buffered = 0;      ///< body bytes announced or read by all sessions
  uint64_t next_request = 0;  ///< part of request ids
  std::string id_prefix;      ///< random, so that ids of two runs differ
  bool draining = false;
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Socket socket, std::string peer, SessionContext& context);

  void start();
  /// Drops the connection if a deadline has passed; sends a keep-alive comment if one is due.
  void tick(Clock::time_point now);
  void close();
  const std::string& peer() const { return peer_; }

 private:
  friend class Exchange;
  enum class Phase { idle, head, body, answering, lingering, closed };

  void read();
  void on_read(error_code ec, size_t count);
  void consume();
  void feed();
  void dispatch();
  void refuse(int status, const std::string& reason);
  void enter(Phase phase, double seconds);
  void account_body(uint64_t bytes);

  void send(std::string bytes);
  void write();
  void on_write(error_code ec, size_t count);
  void finish_answer(bool keep_alive);
  void after_output();
  void linger();

  Socket socket_;
  std::string peer_;
  SessionContext& context_;
  Phase phase_ = Phase::idle;
  Clock::time_point deadline_, last_write_;
  Clock::time_point stall_, output_since_;  ///< while there is output: when the client is late; when it began
  std::unique_ptr<RequestReader> reader_;   ///< null before the first byte of a request
  std::shared_ptr<class Exchange> exchange_;
  std::array<char, 16384> buffer_;
  std::string pending_;        ///< read, not yet understood
  std::string out_, writing_;  ///< to be written; being written
  size_t written_ = 0;
  uint64_t drained_ = 0;  ///< bytes the client took since output_since_
  uint64_t accounted_ = 0;
  bool reading_ = false, close_after_output_ = false, streaming_ = false, keep_alive_ = false;
};

}  // namespace ballast::server
