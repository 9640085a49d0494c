#include "engine/server/http_server.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <map>
#include <random>
#include <thread>
#include <unordered_set>

#include "engine/server/http_session.h"
#include "kernels/check.h"

namespace ballast::server {
namespace {

using asio::ip::tcp;
using Local = asio::local::stream_protocol;

constexpr auto kTick = std::chrono::milliseconds(100);
// The kernel would keep megabytes for each client that does not read.
constexpr int kSendBuffer = 128 << 10;

bool is_loopback(const std::string& address) {
  return address == "unix" || address == "::1" || address.starts_with("127.") ||
         address.starts_with("::ffff:127.");
}

// Every connection takes a descriptor.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::string random_prefix() {
  std::random_device random;
  const char* const digits = "0123456789abcdef";
  std::string text = "req-";
  for (int i = 0; i < 8; ++i) text += digits[random() % 16];
  return text + "-";
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpOptions& options, Handler handler)
      : options_(options),
        context_{.options = options_,
                 .handler = std::move(handler),
                 .on_closed = [this](const auto& session) { forget(session); },
                 .id_prefix = random_prefix()},
        tcp_(io_),
        local_(io_),
        signals_(io_),
        timer_(io_),
        retry_(io_) {
    raise_descriptor_limit();
    if (options_.unix_socket.empty()) {
      listen_tcp();
    } else {
      listen_local();
    }
  }

  ~Impl() {
    stop();
    if (local_.is_open()) ::unlink(options_.unix_socket.c_str());
  }

  void start(std::function<void(int)> on_signal, std::function<void()> on_tick) {
    on_signal_ = std::move(on_signal);
    on_tick_ = std::move(on_tick);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) signals_.add(signal);
    wait_for_signal();
    wait_for_tick();
    accept();
    thread_ = std::thread([this] { io_.run(); });
  }

  void stop() {
    if (!thread_.joinable()) return;
    post([this] {
      const auto sessions = sessions_;
      for (const auto& session : sessions) session->close();
      io_.stop();
    });
    thread_.join();
  }

  void post(std::function<void()> task) { asio::post(io_, std::move(task)); }
  void allow_images(uint64_t bytes) { options_.read.image_body = bytes; }
  void drain() { context_.draining = true; }
  const HttpCounters& counters() const { return context_.counters; }
  int port() const { return tcp_.is_open() ? tcp_.local_endpoint().port() : 0; }

  std::string address() const {
    if (!tcp_.is_open()) return "unix:" + options_.unix_socket;
    const auto endpoint = tcp_.local_endpoint();
    const std::string host = endpoint.address().to_string();
    return str("http://", endpoint.address().is_v6() ? "[" + host + "]" : host, ":", endpoint.port());
  }

 private:
  [[noreturn]] void fail(const std::string& where, const error_code& ec) const {
    throw RuntimeFailure(str("cannot listen on ", where, ": ", ec.message()));
  }

  void listen_tcp() {
    const std::string where = str(options_.host, ":", options_.port);
    error_code ec;
    tcp::resolver resolver(io_);
    const auto found =
        resolver.resolve(options_.host, std::to_string(options_.port), tcp::resolver::passive, ec);
    if (ec || found.empty()) fail(where, ec);
    const tcp::endpoint endpoint = found.begin()->endpoint();
    tcp_.open(endpoint.protocol(), ec);
    if (!ec) tcp_.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) tcp_.bind(endpoint, ec);
    if (!ec) tcp_.listen(4096, ec);
    if (ec) fail(where, ec);
  }

  // A socket that a dead server left behind is in the way; one that somebody answers is not ours to remove.
  void listen_local() {
    error_code ec;
    if (options_.unix_socket.size() > 100)
      throw Error(
          str(options_.unix_socket, ": too long for a Unix socket's path, expected at most 100 bytes"));
    const Local::endpoint endpoint(options_.unix_socket);
    Local::socket probe(io_);
    probe.connect(endpoint, ec);
    if (!ec) fail(options_.unix_socket, asio::error::make_error_code(asio::error::address_in_use));
    if (ec == asio::error::connection_refused) ::unlink(options_.unix_socket.c_str());
    ec.clear();
    Local::acceptor acceptor(io_);
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(4096, ec);
    if (ec) fail(options_.unix_socket, ec);
    local_ = std::move(acceptor);
  }

  void wait_for_signal() {
    signals_.async_wait([this](error_code ec, int signal) {
      if (ec) return;
      on_signal_(signal);
      wait_for_signal();
    });
  }

  void wait_for_tick() {
    timer_.expires_after(kTick);
    timer_.async_wait([this](error_code ec) {
      if (ec) return;
      const Clock::time_point now = Clock::now();
      const auto sessions = sessions_;
      for (const auto& session : sessions) session->tick(now);
      on_tick_();
      wait_for_tick();
    });
  }

  void accept() {
    if (accepting_ || sessions_.size() >= options_.max_connections) return;
    accepting_ = true;
    if (tcp_.is_open()) {
      tcp_.async_accept([this](error_code ec, tcp::socket socket) {
        accepting_ = false;
        if (ec) return accept_later(ec);
        error_code none;
        const auto remote = socket.remote_endpoint(none);
        socket.set_option(tcp::no_delay(true), none);
        socket.set_option(asio::socket_base::send_buffer_size(kSendBuffer), none);
        take(std::move(socket), remote.address().to_string(none));
      });
    } else {
      local_.async_accept([this](error_code ec, Local::socket socket) {
        accepting_ = false;
        if (ec) return accept_later(ec);
        take(std::move(socket), "unix");
      });
    }
  }

  // Out of descriptors, mostly: the connection waits in the kernel's queue until one is free.
  void accept_later(const error_code& ec) {
    if (ec == asio::error::operation_aborted) return;
    if (context_.counters.accept_failures++ % 100 == 0)
      spdlog::warn("cannot accept a connection: {}; trying again", ec.message());
    retry_.expires_after(std::chrono::milliseconds(100));
    retry_.async_wait([this](error_code stopped) {
      if (!stopped) accept();
    });
  }

  void take(Socket socket, const std::string& peer) {
    ++context_.counters.accepted;
    if (per_address_.contains(peer) && per_address_[peer] >= options_.max_per_address &&
        !(options_.exempt_loopback && is_loopback(peer))) {
      ++context_.counters.dropped;
    } else {
      ++per_address_[peer];
      const auto session = std::make_shared<Session>(std::move(socket), peer, context_);
      sessions_.insert(session);
      session->start();
    }
    accept();
  }

  void forget(const std::shared_ptr<Session>& session) {
    sessions_.erase(session);
    const auto at = per_address_.find(session->peer());
    if (--at->second == 0) per_address_.erase(at);
    accept();
  }

  HttpOptions options_;
  SessionContext context_;
  asio::io_context io_{1};
  tcp::acceptor tcp_;
  Local::acceptor local_;
  asio::signal_set signals_;
  asio::steady_timer timer_, retry_;
  bool accepting_ = false;
  std::function<void(int)> on_signal_;
  std::function<void()> on_tick_;
  std::unordered_set<std::shared_ptr<Session>> sessions_;
  std::map<std::string, size_t> per_address_;
  std::thread thread_;
};

HttpServer::HttpServer(const HttpOptions& options, Handler handler)
    : impl_(std::make_unique<Impl>(options, std::move(handler))) {}
HttpServer::~HttpServer() = default;
void HttpServer::start(std::function<void(int)> on_signal, std::function<void()> on_tick) {
  impl_->start(std::move(on_signal), std::move(on_tick));
}
void HttpServer::post(std::function<void()> task) {
  impl_->post(std::move(task));
}
void HttpServer::allow_images(uint64_t bytes) {
  impl_->allow_images(bytes);
}
void HttpServer::drain() {
  impl_->drain();
}
void HttpServer::stop() {
  impl_->stop();
}
const HttpCounters& HttpServer::counters() const {
  return impl_->counters();
}
int HttpServer::port() const {
  return impl_->port();
}
std::string HttpServer::address() const {
  return impl_->address();
}

}  // namespace ballast::server
