// Prompts from a file of JSON lines, results as JSON lines in the same order.
#include <spdlog/spdlog.h>

#include "engine/core/process.h"
#include "engine/io/json.h"
#include "tools/console.h"
#include "tools/generate.h"

namespace ballast {
namespace {

constexpr uint64_t kMaxBatchBytes = uint64_t(1) << 30;

struct Request {
  std::string prompt;
  nlohmann::json id;  ///< null, or the line's own
  int64_t max_tokens;
  GenerationParams params;
  std::vector<std::string> stop;
};

std::vector<std::string> parse_stop(const nlohmann::json& value, const std::string& what) {
  if (value.is_string()) return {value.get<std::string>()};
  std::vector<std::string> stop;
  if (value.is_array())
    for (const auto& text : value)
      if (text.is_string()) stop.push_back(text);
  if (!value.is_array() || stop.size() != value.size())
    throw Error(str(what, ": stop is ", shown_json(value), ", expected a string or an array of strings"));
  return stop;
}

Request parse_request(const nlohmann::json& line, const std::string& what, const GenerateOptions& options,
                      uint64_t seed) {
  constexpr double kAny = 1e6;
  Request request{
      .prompt = json_string(line, "prompt", what), .params = options.params, .stop = options.stop};
  if (const auto* id = json_find(line, "id", what)) request.id = *id;
  request.max_tokens = json_int(line, "max_tokens", what, -1, int64_t(1) << 40, options.max_tokens);
  SamplingParams& sampling = request.params.sampling;
  const auto number = [&](const char* key, double& value) {
    value = json_number(line, key, what, -kAny, kAny, value);
  };
  number("temperature", sampling.temperature);
  number("top_p", sampling.top_p);
  number("min_p", sampling.min_p);
  number("repetition_penalty", sampling.repetition_penalty);
  number("presence_penalty", sampling.presence_penalty);
  number("frequency_penalty", sampling.frequency_penalty);
  sampling.top_k = json_int(line, "top_k", what, 0, int64_t(1) << 31, sampling.top_k);
  sampling.seed = uint64_t(json_int(line, "seed", what, 0, INT64_MAX, int64_t(seed)));
  request.params.ignore_eos = json_bool(line, "ignore_eos", what, request.params.ignore_eos);
  if (const auto* stop = json_find(line, "stop", what)) request.stop = parse_stop(*stop, what);
  try {
    request.params.check();
    StopStrings check_only(request.stop);
  } catch (const Error& error) {
    throw Error(str(what, ": ", error.what()));
  }
  return request;
}

std::vector<Request> parse_requests(const GenerateOptions& options) {
  const std::string text = read_file(options.batch_file, kMaxBatchBytes);
  const uint64_t seed = options.seed.value_or(random_seed());
  std::vector<Request> requests;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const std::string what = str(options.batch_file, ":", number);
    requests.push_back(parse_request(parse_json(line, what), what, options, seed + requests.size()));
  }
  if (requests.empty()) throw Error(str(options.batch_file, ": no prompts, expected one JSON object a line"));
  return requests;
}

}  // namespace

void generate_batch(const GenerateOptions& options, const GlobalOptions& global) {
  std::vector<Request> requests = parse_requests(options);
  Generator generator(options, global);
  std::vector<std::unique_ptr<TextGeneration>> generations;
  int64_t longest = 1;
  for (size_t i = 0; i < requests.size(); ++i) {
    Request& request = requests[i];
    std::vector<int32_t> ids = generator.tokenizer().encode(request.prompt);
    GenerationParams params;
    try {
      params = generator.fitted(request.params, request.max_tokens, int64_t(ids.size()));
    } catch (const Error& error) {
      throw Error(str(options.batch_file, ", prompt ", i + 1, ": ", error.what()));
    }
    longest = std::max(longest, int64_t(ids.size()) + params.max_tokens);
    generations.push_back(std::make_unique<TextGeneration>(generator.tokenizer(), std::move(ids),
                                                           std::move(params), std::move(request.stop)));
  }
  const int64_t parallel = std::min(options.parallel, int64_t(requests.size()));
  Engine engine = generator.engine(parallel * (longest + kPagePositions), {.max_sequences = parallel});
  for (const auto& generation : generations) engine.add(generation->sequence());

  Progress progress(global);
  size_t printed = 0, tokens = 0;
  const auto print_finished = [&] {
    for (; printed < generations.size() && generations[printed]->sequence()->finished(); ++printed) {
      TextGeneration& generation = *generations[printed];
      generation.finish();
      nlohmann::json object = generation.json();
      object["index"] = printed;
      object["seed"] = generation.sequence()->params.sampling.seed;
      if (!requests[printed].id.is_null()) object["id"] = requests[printed].id;
      if (options.echo) object["text"] = to_valid_utf8(requests[printed].prompt) + generation.text();
      tokens += generation.tokens().size();
      print(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    }
  };
  const auto start = std::chrono::steady_clock::now();
  print_finished();  // those that were asked for no tokens
  while (engine.step()) {
    if (interrupt_requested())
      for (const auto& generation : generations) generation->sequence()->cancel_requested = true;
    print_finished();
    progress.update(
        str("[", printed, "/", generations.size(), "] ", engine.scheduler().running(), " running"));
  }
  print_finished();
  progress.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  spdlog::info("{} prompts, {} tokens in {}, {:.1f} tokens/s, peak memory {}", printed, tokens,
               human_seconds(seconds), double(tokens) / std::max(seconds, 1e-9),
               human_bytes(double(peak_memory_bytes())));
  check_interrupt();
}

}  // namespace ballast
