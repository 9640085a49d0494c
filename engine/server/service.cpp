#include "engine/server/service.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <random>

#include "engine/io/content_hash.h"
#include "engine/io/json.h"
#include "engine/server/api_error.h"
#include "engine/server/service_routes.h"

namespace ballast::server {
namespace {

constexpr int kExitInterrupted = 130;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Service::Service(const ServiceOptions& options)
    : options_(options), http_(options.http, [this](HttpRequest request, std::shared_ptr<Reply> reply) {
        handle(std::move(request), reply);
      }) {
  if (!options.api_key_file.empty()) keys_ = ApiKeys::open(options.api_key_file);
  std::random_device random;
  secret_ = uint64_t(random()) << 32 | random();
  created_ = std::time(nullptr);
  workers_ = std::make_unique<WorkerPool>(options.workers);
  http_.start([this](int signal) { on_signal(signal); }, [this] { on_tick(); });
}

Service::~Service() {
  http_.stop();
  workers_.reset();
}

bool Service::run(const ServedModel& model) {
  std::unique_ptr<EngineLoop> loop;
  std::unique_ptr<ImageLoop> image_loop;
  if (model.engine) {
    loop = std::make_unique<EngineLoop>(*model.engine, [this](std::vector<Event> events) {
      auto shared = std::make_shared<std::vector<Event>>(std::move(events));
      http_.post([this, shared] { deliver(std::move(*shared)); });
    });
  } else {
    image_loop = std::make_unique<ImageLoop>(*model.images, [this](ImageLoop::Jobs jobs) {
      http_.post([this, jobs = std::move(jobs)] { deliver_images(jobs); });
    });
  }
  // An I/O thread may be at work on an early request or a tick already: only there do the members change.
  http_.post([this, model, loop = loop.get(), image_loop = image_loop.get()] {
    model_ = model;
    loop_ = loop;
    image_loop_ = image_loop;
    job_context_ = std::make_unique<JobContext>(
        JobContext{.limits = {.tokenizer = model.tokenizer,
                              .model = model.name,
                              .context = model.engine ? model.engine->context() : 0,
                              .usable_vocab = model.usable_vocab,
                              .chat = model.chat,
                              .strict_model = model.strict_name,
                              .max_logprobs = model.max_logprobs},
                   .metrics = metrics_,
                   .workers = *workers_,
                   .post = [this](std::function<void()> task) { http_.post(std::move(task)); },
                   .on_done = [this](CompletionJob& job) { job_done(job); },
                   .fingerprint = options_.version});
    if (model.images) http_.allow_images(model.max_image_bytes);
    become(State::ready);
  });
  // What is borrowed ends with this call: nobody may work with it afterwards.
  const auto end = [this] {
    http_.stop();
    workers_.reset();
  };
  try {
    loop ? loop->run() : image_loop->run();
  } catch (...) {
    // What the last events say still goes out: an error is better than a closed connection.
    usleep(200'000);
    end();
    throw;
  }
  end();
  return !cut_off_;
}

void Service::become(State state) {
  state_ = state;
}

void Service::on_signal(int signal) {
  if (signal == SIGHUP) {
    if (options_.api_key_file.empty()) return;
    try {
      keys_ = ApiKeys::open(options_.api_key_file);
      spdlog::info("keys read again");
    } catch (const std::exception& error) {
      spdlog::error("{}; the keys stay as they are", error.what());
    }
    return;
  }
  if (state_ != State::ready) {
    if (!options_.http.unix_socket.empty()) ::unlink(options_.http.unix_socket.c_str());
    _exit(kExitInterrupted);
  }
  spdlog::info("ending: {} requests to finish, for at most {} s; another signal ends at once",
               http_.counters().busy, options_.drain_seconds);
  become(State::draining);
  http_.drain();
  drain_deadline_ = Clock::now() + std::chrono::milliseconds(int64_t(options_.drain_seconds * 1e3));
}

void Service::on_tick() {
  if (options_.request_seconds > 0 && loop_) {
    for (const auto& job : jobs_) {
      if (seconds_since(job->received()) < options_.request_seconds) continue;
      job->note_timeout();
      loop_->cancel(job);
    }
  }
  if (state_ != State::draining) return;
  if (http_.counters().busy == 0) return finish_drain(true);
  if (Clock::now() < drain_deadline_) return;
  if (std::exchange(cancelled_all_, true)) return finish_drain(false);
  // Streams end with what they have; then they have a moment to be written.
  spdlog::warn("cutting off {} requests", http_.counters().busy);
  cut_off_ = true;
  if (loop_) loop_->cancel_all();
  drain_deadline_ = Clock::now() + std::chrono::seconds(1);
}

void Service::finish_drain(bool clean) {
  if (!clean) cut_off_ = true;
  loop_ ? loop_->stop() : image_loop_->stop();
}

void Service::add_cors(const HttpRequest& request, Reply& reply) const {
  const std::string_view origin = request.header("origin");
  if (origin.empty()) return;
  for (const std::string& allowed : options_.cors_origins) {
    if (allowed != "*" && allowed != origin) continue;
    reply.headers.emplace_back("Access-Control-Allow-Origin", allowed);
    if (allowed != "*") reply.headers.emplace_back("Vary", "Origin");
    reply.headers.emplace_back("Access-Control-Expose-Headers", "x-request-id");
    return;
  }
}

Service::Caller Service::identify(const HttpRequest& request, bool open_to_all) const {
  Caller caller;
  std::string_view key = request.header("x-api-key");
  if (const std::string_view bearer = request.header("authorization");
      bearer.size() > 7 && same_ignoring_case(bearer.substr(0, 7), "bearer "))
    key = bearer.substr(7);
  if (keys_.required()) {
    caller.key = keys_.find(key);
    if (caller.key < 0 && !open_to_all)
      throw ApiError(401, key.empty() ? "no API key: send Authorization: Bearer KEY" : "wrong API key");
  }
  caller.owner = content_hash(caller.key >= 0 ? str("key ", caller.key) : request.peer);
  if (options_.sharing == PrefixSharing::same_key) caller.salt = caller.owner ^ secret_;
  return caller;
}

void Service::check_state(const Route& route) const {
  if (route.any_state) return;
  if (state_ == State::loading) throw ApiError(503, "the model is loading", "", "loading");
  if (state_ == State::draining && route.method == "POST")
    throw ApiError(503, "the server is ending", "", "draining");
}

void Service::check_model(const Route& route) const {
  if (route.of == Route::Of::text && !model_.engine)
    throw ApiError(501, "this model classifies images and knows no text: POST a JPEG or PNG to /v1/classify");
  if (route.of == Route::Of::images && !model_.images)
    throw ApiError(501, "this model continues text and knows no images: use /v1/completions");
}

void Service::handle(HttpRequest request, const std::shared_ptr<Reply>& reply) {
  try {
    route(request, reply);
  } catch (const ApiError& error) {
    answer(request, reply, error.response());
  } catch (const std::exception& error) {
    spdlog::error("{}: {}", request.id, error.what());
    answer(request, reply, ApiError(500, "internal error").response());
  }
}

void Service::answer(const HttpRequest& request, const std::shared_ptr<Reply>& reply, HttpResponse response) {
  bool known = false;
  find_route(request, known);
  ++metrics_.responses[{known ? request.path : "other", response.status}];
  spdlog::debug("{} {} {} {} {:.1f} ms", request.id, request.method, known ? request.path : "?",
                response.status, seconds_since(request.received) * 1e3);
  reply->send(std::move(response));
}

void Service::answer_later(HttpRequest request, const std::shared_ptr<Reply>& reply,
                           std::function<HttpResponse(const HttpRequest&)> work) {
  auto shared = std::make_shared<HttpRequest>(std::move(request));
  workers_->run([this, shared, reply, work = std::move(work)] {
    auto response = std::make_shared<HttpResponse>();
    try {
      *response = work(*shared);
    } catch (const ApiError& error) {
      *response = error.response();
    } catch (const Error& error) {
      *response = ApiError(400, error.what()).response();
    } catch (const std::exception& error) {
      spdlog::error("{}: {}", shared->id, error.what());
      *response = ApiError(500, "internal error").response();
    }
    http_.post([this, shared, reply, response] { answer(*shared, reply, std::move(*response)); });
  });
}

void Service::complete(Dialect dialect, HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  const Caller caller = identify(request, false);
  // Before the work of parsing.
  if (in_flight_ >= model_.slots + options_.max_queue) {
    ++metrics_.rejected;
    throw ApiError(429, "too many requests wait already");
  }
  auto shared = std::make_shared<HttpRequest>(std::move(request));
  workers_->run([this, dialect, shared, reply, caller] {
    std::shared_ptr<CompletionJob> job;
    auto refusal = std::make_shared<HttpResponse>();
    try {
      CompletionRequest parsed = parse_completion(dialect, shared->body, job_context_->limits);
      shared->body.clear();
      if (options_.sharing == PrefixSharing::none) parsed.params.share_prefix = false;
      for (const std::string& field : parsed.unknown)
        spdlog::debug("{}: field {} is not known and was ignored", shared->id, shown(field));
      job = std::make_shared<CompletionJob>(std::move(parsed), *job_context_, *shared, caller.salt,
                                            caller.owner);
    } catch (const ApiError& error) {
      *refusal = error.response();
    } catch (const Error& error) {
      *refusal = ApiError(400, error.what()).response();
    } catch (const std::exception& error) {
      spdlog::error("{}: {}", shared->id, error.what());
      *refusal = ApiError(500, "internal error").response();
    }
    http_.post([this, shared, reply, job, refusal] {
      if (!job) return answer(*shared, reply, std::move(*refusal));
      try {
        start_job(job, reply);
        ++metrics_.responses[{shared->path, 200}];
      } catch (const ApiError& error) {
        answer(*shared, reply, error.response());
      }
    });
  });
}

void Service::start_job(const std::shared_ptr<CompletionJob>& job, const std::shared_ptr<Reply>& reply) {
  if (reply->client_left()) return;
  const int64_t count = int64_t(job->choices.size());
  // A request larger than the queue may come alone.
  if (in_flight_ > 0 && in_flight_ + count > model_.slots + options_.max_queue) {
    ++metrics_.rejected;
    throw ApiError(429, "too many requests wait already");
  }
  in_flight_ += count;
  jobs_.insert(job);
  job->answer_to(reply);
  reply->on_leave([this, weak = std::weak_ptr<CompletionJob>(job)] {
    const auto left = weak.lock();
    if (!left || left->done()) return;
    spdlog::debug("{}: the client left", left->id());
    loop_->cancel(left);
  });
  loop_->submit(job);
}

void Service::deliver(std::vector<Event> events) {
  std::vector<std::shared_ptr<Job>> touched;
  for (Event& event : events) {
    event.job->on_event(event);
    if (touched.empty() || touched.back() != event.job) touched.push_back(event.job);
  }
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  for (const auto& job : touched) job->after_events();
}

void Service::job_done(CompletionJob& job) {
  in_flight_ -= int64_t(job.choices.size());
  jobs_.erase(std::static_pointer_cast<CompletionJob>(job.shared_from_this()));
}

}  // namespace ballast::server
