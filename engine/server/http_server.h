// The transport: one thread that accepts connections, reads requests, writes responses and keeps every deadline.
// Handlers run on that thread and must be quick; what takes longer goes elsewhere and comes back through post().
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/server/http_reader.h"

namespace ballast::server {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;          ///< 0: one that is free
  std::string unix_socket;  ///< path; not empty: instead of host and port
  ReadLimits read;
  double header_seconds = 10;  ///< from the first byte of a request to the end of its headers
  double body_seconds = 10;    ///< for the body, and longer at min_rate
  double min_rate = 8192;      ///< bytes per second that a body must come with
  double idle_seconds = 60;    ///< between requests
  double stall_seconds = 30;   ///< that a client may take nothing of what is written
  double min_output_rate =
      1024;  ///< bytes per second that it must take for as long as there is something to take
  double keep_alive_seconds = 15;  ///< without output, until a stream gets a comment
  size_t max_output = 8 << 20;     ///< bytes that wait for one client
  size_t max_connections = 2048, max_per_address = 256;
  bool exempt_loopback = true;  ///< from max_per_address: a proxy's connections all come from there
  uint64_t max_buffered = uint64_t(256) << 20;  ///< bytes of all bodies being read together
};

/// Answers one request, on the I/O thread. Once the client has left, all calls do nothing.
class Reply {
 public:
  virtual ~Reply() = default;
  virtual void send(HttpResponse response) = 0;
  /// A body in pieces: begin, any number of writes, end. `head.body` must be empty. While it lasts and nothing is
  /// written, comments keep the connection open, so the pieces must be server-sent events.
  virtual void begin(HttpResponse head) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void end() = 0;
  /// Called once if the client leaves before the answer is complete.
  virtual void on_leave(std::function<void()> callback) = 0;
  virtual bool client_left() const = 0;

  Headers headers;  ///< sent with whatever is answered
};

using Handler = std::function<void(HttpRequest, std::shared_ptr<Reply>)>;

struct HttpCounters {
  int64_t connections = 0;      ///< open
  int64_t busy = 0;             ///< with a request whose answer is not written yet
  int64_t accepted = 0;         ///< since the start
  int64_t dropped = 0;          ///< that missed a deadline or overflowed
  int64_t accept_failures = 0;  ///< no descriptor left, mostly
};

class HttpServer {
 public:
  /// Binds and listens. Error when that fails; `handler` is called from start() on.
  HttpServer(const HttpOptions& options, Handler handler);
  ~HttpServer();

  /// Starts the thread. `on_signal` is called on it for SIGINT, SIGTERM and SIGHUP, `on_tick` ten times a second.
  void start(std::function<void(int)> on_signal, std::function<void()> on_tick);
  /// Runs `task` on the I/O thread; from any thread.
  void post(std::function<void()> task);
  /// From now on requests whose body is an image may have `bytes` of it. On the I/O thread.
  void allow_images(uint64_t bytes);
  /// From now on every response closes its connection. On the I/O thread.
  void drain();
  /// Ends the thread and closes everything; from any other thread.
  void stop();

  const HttpCounters& counters() const;  ///< on the I/O thread
  int port() const;                      ///< 0 for a Unix socket
  std::string address() const;           ///< "http://127.0.0.1:8080"

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast::server
