#include "engine/server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "engine/core/process.h"

namespace ballast::server {
namespace {

// From 1 ms, about four a decade.
std::vector<double> up_to(double last) {
  std::vector<double> bounds;
  for (const double bound : {.001, .0025, .005, .01, .02, .04, .08, .16,  .32,  .64,
                             1.28, 2.5,   5.,   10., 20., 40., 80., 160., 320., 640.})
    if (bound <= last) bounds.push_back(bound);
  return bounds;
}

std::string head(const std::string& name, const char* type, const std::string& help) {
  return fmt::format("# HELP ballast_{} {}\n# TYPE ballast_{} {}\n", name, help, name, type);
}

std::string value(const std::string& name, const char* type, const std::string& help, double number) {
  return head(name, type, help) + fmt::format("ballast_{} {}\n", name, number);
}

int64_t open_descriptors() {
  std::error_code ec;
  const std::filesystem::directory_iterator files("/proc/self/fd", ec);
  return ec ? 0 : std::distance(begin(files), end(files)) - 1;  // less the one that this takes
}

// A label's value: what a client sent may be in it.
std::string escaped(const std::string& text) {
  std::string result;
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') result += '\\';
    if (letter == '\n') {
      result += "\\n";
    } else {
      result += letter;
    }
  }
  return result;
}

}  // namespace

void Histogram::add(double number) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), number) - bounds_.begin();
  ++counts_[size_t(bucket)];
  ++count_;
  sum_ += number;
}

std::string Histogram::text(const std::string& name, const std::string& help) const {
  std::string text = head(name, "histogram", help);
  int64_t below = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i];
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    text += fmt::format("ballast_{}_bucket{{le=\"{}\"}} {}\n", name, bound, below);
  }
  return text + fmt::format("ballast_{}_sum {}\nballast_{}_count {}\n", name, sum_, name, count_);
}

Metrics::Metrics() : first_token(up_to(160)), inter_token(up_to(5)), whole(up_to(640)), queue(up_to(160)) {}

std::string Metrics::text(const EngineStatus& engine, int64_t images, const HttpCounters& http,
                          const std::string& version) const {
  const auto gauge = [](const char* name, const char* help, double number) {
    return value(name, "gauge", help, number);
  };
  const auto counter = [](const char* name, const char* help, int64_t number) {
    return value(name, "counter", help, double(number));
  };
  const double pages = double(std::max<int64_t>(1, engine.pages));
  std::string text =
      head("build_info", "gauge", "What runs here.") +
      fmt::format("ballast_build_info{{version=\"{}\"}} 1\n", escaped(version)) +
      gauge("requests_running", "Sequences or images that are being computed.", double(engine.running)) +
      gauge("requests_waiting", "Sequences or images that wait for room.", double(engine.waiting)) +
      gauge("kv_cache_usage_ratio", "Share of the cache pages that running sequences hold.",
            double(engine.used_pages) / pages) +
      counter("prompt_tokens_total", "Prompt tokens of sequences that started.",
              engine.counters.prompt_tokens) +
      counter("generated_tokens_total", "Tokens generated.", engine.counters.generated_tokens) +
      counter("images_classified_total", "Images classified.", images) +
      counter("prefix_cache_queries_total", "Prompt tokens looked up in the cache.",
              engine.counters.prompt_tokens) +
      counter("prefix_cache_hits_total", "Prompt tokens found in the cache.", engine.counters.shared_tokens) +
      counter("preemptions_total", "Sequences that gave their cache pages back for a while.",
              engine.counters.preemptions) +
      counter("requests_rejected_total", "Requests answered 429 because the queue was full.", rejected) +
      first_token.text("time_to_first_token_seconds", "From a request's arrival to its first token.") +
      inter_token.text("inter_token_seconds", "Between two tokens of a sequence.") +
      whole.text("request_seconds", "From a request's arrival to its last token, or to its classes.") +
      queue.text("queue_seconds",
                 "From a request's arrival to the start of its first sequence or of its image.");
  text += head("requests_finished_total", "counter", "Choices that ended, by reason.");
  for (const FinishReason reason :
       {FinishReason::stop, FinishReason::length, FinishReason::cancelled, FinishReason::failed})
    text += fmt::format("ballast_requests_finished_total{{reason=\"{}\"}} {}\n", name_of(reason),
                        finished[size_t(reason)]);
  text += head("http_responses_total", "counter", "Responses, by route and status.");
  for (const auto& [key, count] : responses)
    text += fmt::format("ballast_http_responses_total{{route=\"{}\",status=\"{}\"}} {}\n", escaped(key.first),
                        key.second, count);
  return text + gauge("http_connections", "Open connections.", double(http.connections)) +
         gauge("http_busy", "Connections whose request is being answered.", double(http.busy)) +
         counter("http_accepted_total", "Connections accepted.", http.accepted) +
         counter("http_dropped_total", "Connections dropped for being slow or too many.", http.dropped) +
         gauge("open_descriptors", "Open file descriptors of the process.", double(open_descriptors())) +
         gauge("peak_memory_bytes", "Largest resident set so far.", double(peak_memory_bytes()));
}

}  // namespace ballast::server
