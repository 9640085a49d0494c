// POST /v1/classify?top=K: a JPEG or PNG as the body, its likeliest classes as the answer.
#include <spdlog/spdlog.h>

#include <charconv>
#include <cmath>
#include <ctime>

#include "engine/io/json.h"
#include "engine/server/api_error.h"
#include "engine/server/service.h"

namespace ballast::server {
namespace {

using nlohmann::json;

// Half of what files may have: several are decoded at a time, and a client pays nothing for a large empty one.
constexpr ImageLimits kLimits{.pixels = 50'000'000, .passes = 64};
constexpr int64_t kTop = 5;

int64_t parse_top(const HttpRequest& request, int64_t classes) {
  const std::string_view text = request.query_value("top");
  if (text.empty()) return std::min(kTop, classes);
  int64_t top = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), top);
  if (failure != std::errc() || end != text.data() + text.size() || top < 1 || top > classes)
    throw ApiError(400, str("query: 'top': expected a number from 1 to ", classes, ", got ", shown(text)),
                   "top");
  return top;
}

}  // namespace

struct Service::Classification : ImageJob {
  HttpRequest request;
  std::shared_ptr<Reply> reply;
  int64_t top = 0;
};

void Service::classify(HttpRequest& request, const std::shared_ptr<Reply>& reply) {
  auto job = std::make_shared<Classification>();
  job->top = parse_top(request, model_.images->classes());
  if (in_flight_ >= model_.slots + options_.max_queue) {
    ++metrics_.rejected;
    throw ApiError(429, "too many images wait already");
  }
  ++in_flight_;
  job->request = std::move(request);
  job->reply = reply;
  reply->on_leave([weak = std::weak_ptr<Classification>(job)] {
    if (const auto left = weak.lock()) left->cancelled = true;
  });
  workers_->run([this, job] {
    if (job->cancelled) return http_.post([this] { --in_flight_; });
    auto refusal = std::make_shared<HttpResponse>();
    try {
      job->image = model_.images->reader().read(job->request.body, "image", kLimits);
      refusal = nullptr;
    } catch (const Error& error) {
      *refusal = ApiError(400, error.what(), "", "invalid_image").response();
    } catch (const std::bad_alloc&) {
      *refusal = ApiError(503, "not enough memory for this image").response();
    } catch (const std::exception& error) {
      spdlog::error("{}: {}", job->request.id, error.what());
      *refusal = ApiError(500, "internal error").response();
    }
    job->request.body = {};
    http_.post([this, job, refusal] {
      if (!refusal) return image_loop_->submit(job);
      --in_flight_;
      answer(job->request, job->reply, std::move(*refusal));
    });
  });
}

void Service::deliver_images(const ImageLoop::Jobs& jobs) {
  for (const auto& one : jobs) {
    auto& job = static_cast<Classification&>(*one);
    --in_flight_;
    if (job.cancelled) continue;
    if (job.logits.empty()) {
      answer(job.request, job.reply,
             ApiError(500, "the server failed while computing this request").response());
      continue;
    }
    const auto seconds_until = [&](Clock::time_point time) {
      return std::chrono::duration<double>(time - job.request.received).count();
    };
    metrics_.queue.add(seconds_until(job.started));
    metrics_.whole.add(seconds_until(Clock::now()));
    json predictions = json::array();
    for (const int64_t index : best_classes(job.logits, job.top))
      predictions.push_back({{"class", index},
                             {"label", model_.class_names[size_t(index)]},
                             {"probability", std::exp(-negative_log_likelihood(job.logits, index))},
                             {"logit", job.logits[size_t(index)]}});
    answer(job.request, job.reply,
           json_response({{"object", "image_classification"},
                          {"created", std::time(nullptr)},
                          {"model", model_.name},
                          {"predictions", std::move(predictions)}}));
  }
}

}  // namespace ballast::server
