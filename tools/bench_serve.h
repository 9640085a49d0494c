// How fast a running server answers: `ballast bench --serve URL`.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace ballast {

struct ServeBenchOptions {
  std::string url;  ///< "http://127.0.0.1:8080"; empty: not asked for
  std::string api_key;
  int64_t requests = 64, concurrency = 16, prompt = 128, generate = 64;
  double good_first = 2, good_gap = 0.2;  ///< seconds: what counts as good
};

/// --serve and the flags that go with it.
void add_serve_bench_flags(CLI::App& app, ServeBenchOptions& options);

/// Streams completions of random prompts over so many connections at once and prints time to the first token, time
/// between tokens, whole time, throughput and goodput (requests a second that were good). Error when the server
/// cannot be reached or refuses.
void bench_serve(const ServeBenchOptions& options, bool json);

}  // namespace ballast
