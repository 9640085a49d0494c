#include "tools/bench_serve.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "engine/io/json.h"
#include "kernels/check.h"
#include "tools/console.h"

namespace ballast {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One connection to the server; requests follow each other on it.
class Client {
 public:
  Client(const std::string& host, const std::string& port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int code = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); code != 0)
      throw Error(str("--serve: ", host, ":", port, ": ", gai_strerror(code)));
    socket_ = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool connected = socket_ >= 0 && ::connect(socket_, found->ai_addr, found->ai_addrlen) == 0;
    const int reason = errno;
    freeaddrinfo(found);
    if (!connected) throw Error(str("--serve: cannot reach ", host, ":", port, ": ", std::strerror(reason)));
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() {
    if (socket_ >= 0) ::close(socket_);
  }

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) throw RuntimeFailure(str("the server closed the connection: ", std::strerror(errno)));
      bytes.remove_prefix(size_t(count));
    }
  }

  std::string line() {
    size_t end;
    while ((end = buffer_.find("\r\n")) == buffer_.npos) more();
    std::string text = buffer_.substr(0, end);
    buffer_.erase(0, end + 2);
    return text;
  }

  std::string bytes(size_t count) {
    while (buffer_.size() < count) more();
    std::string text = buffer_.substr(0, count);
    buffer_.erase(0, count);
    return text;
  }

 private:
  void more() {
    char piece[16384];
    const ssize_t count = ::recv(socket_, piece, sizeof piece, 0);
    if (count <= 0) throw RuntimeFailure("the server closed the connection");
    buffer_.append(piece, size_t(count));
  }

  int socket_ = -1;
  std::string buffer_;
};

struct Address {
  std::string host, port;
};

Address parse_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) throw Error(str("--serve is ", shown(url), ", expected http://HOST:PORT"));
  std::string rest = url.substr(kScheme.size());
  rest = rest.substr(0, rest.find('/'));
  const size_t colon = rest.rfind(':');
  if (colon == rest.npos || rest.empty()) return {rest, "80"};
  return {rest.substr(0, colon), rest.substr(colon + 1)};
}

/// What one thread saw.
struct Seen {
  std::vector<double> first, gaps, whole;  ///< seconds
  int64_t tokens = 0, good = 0, refused = 0;
};

std::string request_text(const ServeBenchOptions& options, const Address& address, uint64_t seed) {
  std::mt19937_64 random(seed);
  nlohmann::json prompt = nlohmann::json::array();
  for (int64_t i = 0; i < options.prompt; ++i) prompt.push_back(4 + random() % 250);
  const std::string body =
      nlohmann::json{{"prompt", prompt},   {"max_tokens", options.generate}, {"temperature", 0},
                     {"ignore_eos", true}, {"return_token_ids", true},       {"stream", true}}
          .dump();
  std::string head = str("POST /v1/completions HTTP/1.1\r\nHost: ", address.host,
                         "\r\nContent-Type: application/json\r\nContent-Length: ", body.size(), "\r\n");
  if (!options.api_key.empty()) head += "Authorization: Bearer " + options.api_key + "\r\n";
  return head + "\r\n" + body;
}

// Tokens in a chunk: several may have come at once.
int64_t tokens_in(const std::string& chunk) {
  int64_t count = 0;
  for (size_t at = 0; (at = chunk.find("data: {", at)) != chunk.npos;) {
    at += 6;
    const auto event = nlohmann::json::parse(chunk.substr(at, chunk.find("\n\n", at) - at), nullptr, false);
    if (event.is_object() && event.contains("choices"))
      for (const auto& choice : event["choices"])
        count += int64_t(choice.value("token_ids", nlohmann::json::array()).size());
  }
  return count;
}

void one_request(Client& client, const ServeBenchOptions& options, const Address& address, uint64_t seed,
                 Seen& seen) {
  const double start = now();
  client.send(request_text(options, address, seed));
  const std::string status = client.line();
  size_t length = 0;
  for (std::string header; !(header = client.line()).empty();)
    if (header.starts_with("Content-Length: ")) length = std::stoul(header.substr(16));
  if (status.find(" 429 ") != status.npos) {
    client.bytes(length);
    ++seen.refused;
    return;
  }
  if (status.find(" 200 ") == status.npos)
    throw Error(str("the server answered ", status, " ", client.bytes(length)));
  double last = 0, slowest = 0;
  int64_t tokens = 0;
  while (const size_t size = std::stoul(client.line(), nullptr, 16)) {
    const int64_t count = tokens_in(client.bytes(size));
    client.bytes(2);
    if (count == 0) continue;
    const double at = now();
    if (tokens == 0) seen.first.push_back(at - start);
    if (tokens > 0) seen.gaps.push_back(at - last), slowest = std::max(slowest, at - last);
    for (int64_t i = 1; i < count; ++i) seen.gaps.push_back(0);
    tokens += count;
    last = at;
  }
  client.bytes(2);
  seen.tokens += tokens;
  seen.whole.push_back(now() - start);
  if (tokens > 0 && seen.first.back() <= options.good_first && slowest <= options.good_gap) ++seen.good;
}

double percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = values.begin() + std::ptrdiff_t(share * double(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

nlohmann::json spread(std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return {{"mean", values.empty() ? 0 : sum / double(values.size())},
          {"p50", percentile(values, 0.5)},
          {"p90", percentile(values, 0.9)},
          {"p99", percentile(values, 0.99)}};
}

Seen run_all(const ServeBenchOptions& options, const Address& address) {
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  Seen all;
  std::exception_ptr failure;
  const auto work = [&] {
    Seen seen;
    try {
      Client client(address.host, address.port);
      for (int64_t i; (i = next++) < options.requests;)
        one_request(client, options, address, uint64_t(i), seen);
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
      next = options.requests;
    }
    const std::lock_guard lock(mutex);
    for (const auto part : {&Seen::first, &Seen::gaps, &Seen::whole})
      (all.*part).insert((all.*part).end(), (seen.*part).begin(), (seen.*part).end());
    all.tokens += seen.tokens, all.good += seen.good, all.refused += seen.refused;
  };
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < std::min(options.concurrency, options.requests); ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  return all;
}

}  // namespace

void add_serve_bench_flags(CLI::App& app, ServeBenchOptions& options) {
  const auto count = [&](const char* name, int64_t& value, const char* description) {
    app.add_option(name, value, description)
        ->type_name("N")
        ->check(CLI::Range(int64_t(1), int64_t(1) << 30))
        ->capture_default_str();
  };
  app.add_option("--serve", options.url, "Measure the server at http://HOST:PORT instead of a model")
      ->type_name("URL");
  app.add_option("--serve-key", options.api_key, "API key for it")->type_name("KEY");
  count("--requests", options.requests, "Requests to it");
  count("--concurrency", options.concurrency, "Requests at once");
  count("--serve-prompt", options.prompt, "Tokens of a request's prompt, random ones");
  count("--serve-generate", options.generate, "Tokens that it asks for");
  app.add_option("--good-first", options.good_first,
                 "A good request's first token comes within that many seconds")
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option("--good-gap", options.good_gap, "and no later token takes longer than this")
      ->type_name("SECONDS")
      ->capture_default_str();
}

void bench_serve(const ServeBenchOptions& options, bool json) {
  const Address address = parse_url(options.url);
  const double start = now();
  Seen seen = run_all(options, address);
  const double seconds = now() - start;
  nlohmann::json result = {{"url", options.url},
                           {"requests", options.requests},
                           {"concurrency", options.concurrency},
                           {"refused", seen.refused},
                           {"seconds", seconds},
                           {"tokens", seen.tokens},
                           {"tokens_per_second", double(seen.tokens) / seconds},
                           {"requests_per_second", double(seen.whole.size()) / seconds},
                           {"goodput", double(seen.good) / seconds},
                           {"time_to_first_token", spread(seen.first)},
                           {"inter_token", spread(seen.gaps)},
                           {"whole", spread(seen.whole)}};
  if (json) return print_json(result);
  std::string text = fmt::format("| milliseconds | mean | p50 | p90 | p99 |\n|---|---|---|---|---|\n");
  for (const auto& [name, key] :
       {std::pair("first token", "time_to_first_token"), std::pair("between tokens", "inter_token"),
        std::pair("whole request", "whole")}) {
    const auto& row = result[key];
    text += fmt::format("| {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |\n", name, row["mean"].get<double>() * 1e3,
                        row["p50"].get<double>() * 1e3, row["p90"].get<double>() * 1e3,
                        row["p99"].get<double>() * 1e3);
  }
  print(text +
        fmt::format(
            "\n{} requests, {} at once: {:.1f} tokens/s, {:.2f} requests/s, {:.2f} good ones/s, {} refused\n",
            options.requests, options.concurrency, double(seen.tokens) / seconds,
            double(seen.whole.size()) / seconds, double(seen.good) / seconds, seen.refused));
}

}  // namespace ballast
