#include "engine/server/http_session.h"

#include <boost/asio/buffer.hpp>

#include "engine/server/api_error.h"
#include "kernels/check.h"

namespace ballast::server {
namespace {

constexpr double kLingerSeconds = 2;
// Bytes of following requests that are read while one is answered, so that a client's leaving is noticed.
constexpr size_t kMaxAhead = 64 << 10;

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

}  // namespace

/// The answer to one request of a session.
class Exchange : public Reply {
 public:
  Exchange(std::weak_ptr<Session> session, std::string id, bool head_only, bool chunks, bool keep_alive)
      : session_(std::move(session)),
        id_(std::move(id)),
        head_only_(head_only),
        chunks_(chunks),
        keep_alive_(keep_alive) {}

  void send(HttpResponse response) override {
    const auto session = session_.lock();
    if (!session || done_) return;
    done_ = true;
    const bool keep = keeps(*session) && !response.close;
    add_headers(response);
    std::string bytes = head_text(response, int64_t(response.body.size()), keep);
    if (!head_only_) bytes += response.body;
    session->finish_answer(keep);
    session->send(std::move(bytes));
  }

  void begin(HttpResponse head) override {
    const auto session = session_.lock();
    if (!session || done_) return;
    streaming_keep_ = keeps(*session) && chunks_;
    add_headers(head);
    session->streaming_ = true;
    session->send(head_text(head, chunks_ ? -1 : -2, streaming_keep_));
  }

  void write(std::string_view bytes) override {
    const auto session = session_.lock();
    if (!session || done_ || bytes.empty()) return;
    session->send(chunks_ ? chunk_text(bytes) : std::string(bytes));
  }

  void end() override {
    const auto session = session_.lock();
    if (!session || done_) return;
    done_ = true;
    session->finish_answer(streaming_keep_);
    session->send(chunks_ ? chunk_text("") : "");
  }

  void on_leave(std::function<void()> callback) override { on_leave_ = std::move(callback); }
  bool client_left() const override { return left_; }

  void leave() {
    if (done_ || left_) return;
    left_ = true;
    if (const auto callback = std::move(on_leave_)) callback();
  }

 private:
  void add_headers(HttpResponse& response) const {
    response.headers.insert(response.headers.end(), headers.begin(), headers.end());
    response.headers.emplace_back("x-request-id", id_);
  }
  bool keeps(const Session& session) const { return keep_alive_ && !session.context_.draining; }

  std::weak_ptr<Session> session_;
  std::string id_;
  bool head_only_, chunks_, keep_alive_;
  bool done_ = false, left_ = false, streaming_keep_ = false;
  std::function<void()> on_leave_;
};

Session::Session(Socket socket, std::string peer, SessionContext& context)
    : socket_(std::move(socket)), peer_(std::move(peer)), context_(context) {
  ++context_.counters.connections;
}

void Session::start() {
  enter(Phase::idle, context_.options.idle_seconds);
  read();
}

void Session::enter(Phase phase, double limit) {
  phase_ = phase;
  deadline_ = Clock::now() + seconds(limit);
}

void Session::close() {
  if (phase_ == Phase::closed) return;
  if (phase_ == Phase::answering) --context_.counters.busy;
  phase_ = Phase::closed;
  account_body(0);
  error_code ignored;
  socket_.close(ignored);
  --context_.counters.connections;
  const auto self = shared_from_this();
  context_.on_closed(self);
  if (const auto exchange = std::move(exchange_)) exchange->leave();
}

void Session::account_body(uint64_t bytes) {
  context_.buffered += bytes - accounted_;
  accounted_ = bytes;
}

void Session::read() {
  if (reading_ || phase_ == Phase::closed || pending_.size() > kMaxAhead) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(buffer_), [self = shared_from_this()](error_code ec, size_t count) {
    self->on_read(ec, count);
  });
}

void Session::on_read(error_code ec, size_t count) {
  reading_ = false;
  if (phase_ == Phase::closed) return;
  if (ec) {
    // A client that has closed its side only is as gone as one that left: nobody waits half a connection long.
    if (close_after_output_ && (!out_.empty() || !writing_.empty())) return;
    return close();
  }
  if (phase_ != Phase::lingering) {
    pending_.append(buffer_.data(), count);
    consume();
  }
  read();
}

void Session::consume() {
  while (!pending_.empty() && !exchange_ && !close_after_output_ &&
         (phase_ == Phase::idle || phase_ == Phase::head || phase_ == Phase::body))
    feed();
}

void Session::feed() {
  if (!reader_) reader_ = std::make_unique<RequestReader>(context_.options.read);
  pending_.erase(0, reader_->feed(pending_));
  if (reader_->state() == RequestReader::State::failed) return refuse(reader_->status(), reader_->reason());
  if (reader_->state() == RequestReader::State::done) return dispatch();
  if (phase_ == Phase::idle && reader_->started()) enter(Phase::head, context_.options.header_seconds);
  if (reader_->state() != RequestReader::State::body) return;
  if (phase_ != Phase::body) enter(Phase::body, context_.options.body_seconds);
  account_body(std::max(reader_->announced_bytes(), reader_->body_bytes()));
  if (context_.buffered > context_.options.max_buffered)
    return refuse(429, "too many large requests at once");
  if (reader_->take_continue()) send("HTTP/1.1 100 Continue\r\n\r\n");
}

void Session::dispatch() {
  HttpRequest request = reader_->take();
  request.peer = peer_;
  request.received = Clock::now();
  request.id = context_.id_prefix + std::to_string(++context_.next_request);
  exchange_ = std::make_shared<Exchange>(weak_from_this(), request.id, request.method == "HEAD",
                                         reader_->chunks(), reader_->keep_alive());
  ++context_.counters.busy;
  enter(Phase::answering, 0);
  last_write_ = Clock::now();
  context_.handler(std::move(request), exchange_);
}

void Session::refuse(int status, const std::string& reason) {
  HttpResponse response = ApiError(status, reason).response();
  close_after_output_ = true;
  ++context_.counters.busy;
  enter(Phase::answering, 0);
  send(head_text(response, int64_t(response.body.size()), false) + response.body);
}

void Session::send(std::string bytes) {
  if (phase_ == Phase::closed) return;
  last_write_ = Clock::now();
  if (out_.empty() && writing_.empty()) {
    stall_ = last_write_ + seconds(context_.options.stall_seconds);
    output_since_ = last_write_, drained_ = 0;
  }
  if (out_.empty()) {
    out_ = std::move(bytes);
  } else {
    out_ += bytes;
  }
  if (streaming_ && out_.size() > context_.options.max_output) {
    ++context_.counters.dropped;
    // Not from within the handler that is writing.
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->close(); });
    return;
  }
  if (writing_.empty()) write();
}

void Session::write() {
  if (writing_.empty()) {
    if (out_.empty()) return after_output();
    writing_.swap(out_);
    written_ = 0;
  }
  socket_.async_write_some(
      asio::buffer(writing_.data() + written_, writing_.size() - written_),
      [self = shared_from_this()](error_code ec, size_t count) { self->on_write(ec, count); });
}

void Session::on_write(error_code ec, size_t count) {
  if (phase_ == Phase::closed) return;
  if (ec) return close();
  written_ += count, drained_ += count;
  // Somebody who takes a byte now and then would hold megabytes for days.
  const double earned = double(drained_) / std::max(1.0, context_.options.min_output_rate);
  stall_ = std::min(Clock::now() + seconds(context_.options.stall_seconds),
                    output_since_ + seconds(context_.options.stall_seconds + earned));
  if (written_ == writing_.size()) writing_.clear();
  write();
}

// The exchange has said everything; what it said may still be on its way out.
void Session::finish_answer(bool keep_alive) {
  exchange_.reset();
  account_body(0);
  streaming_ = false;
  keep_alive_ = keep_alive;
  if (!keep_alive) close_after_output_ = true;
}

void Session::after_output() {
  if (phase_ != Phase::answering || exchange_) return;
  --context_.counters.busy;
  if (close_after_output_) return linger();
  reader_.reset();
  enter(Phase::idle, context_.options.idle_seconds);
  // Not from here: a client with many requests in a row would make this a recursion.
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->consume();
    self->read();
  });
}

// Closing while the client still sends would reset the connection and lose the response on its way.
void Session::linger() {
  error_code ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  pending_.clear();
  enter(Phase::lingering, kLingerSeconds);
  read();
}

void Session::tick(Clock::time_point now) {
  if (phase_ == Phase::closed) return;
  const bool output = !out_.empty() || !writing_.empty();
  bool late = output && now > stall_;
  if (phase_ == Phase::body) {
    const double rate = std::max(1.0, context_.options.min_rate);
    late = late || now > deadline_ + seconds(double(reader_->body_bytes()) / rate);
  } else if (phase_ != Phase::answering) {
    late = late || now > deadline_;
  }
  if (late) {
    if (phase_ != Phase::idle && phase_ != Phase::lingering) ++context_.counters.dropped;
    return close();
  }
  if (streaming_ && !output && now - last_write_ > seconds(context_.options.keep_alive_seconds))
    exchange_->write(": keep-alive\n\n");
}

}  // namespace ballast::server
