#include "tools/generate.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <random>

#include "engine/core/process.h"
#include "engine/io/json.h"
#include "tools/console.h"
#include "tools/generate_flags.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

constexpr uint64_t kMaxPromptBytes = uint64_t(64) << 20;

std::string read_standard_input() {
  std::string text;
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const ssize_t count = read(STDIN_FILENO, buffer.data(), buffer.size());
    check_interrupt();
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(str("standard input: ", std::strerror(errno)));
    if (count == 0) return text;
    text.append(buffer.data(), size_t(count));
    if (text.size() > kMaxPromptBytes)
      throw Error(str("standard input is longer than ", kMaxPromptBytes, " bytes"));
  }
}

std::string prompt_text(const GenerateOptions& options) {
  if (options.prompt) return *options.prompt;
  std::string text;
  if (!options.prompt_file.empty() && options.prompt_file != "-") {
    text = read_file(options.prompt_file, kMaxPromptBytes);
  } else {
    if (options.prompt_file.empty() && isatty(STDIN_FILENO))
      throw Error("no prompt: give --prompt TEXT or --file FILE, pipe text in, or use --interactive");
    text = read_standard_input();
  }
  // Editors and echo end text with a newline that nobody means to be part of the prompt.
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

// A token as one quoted, printable word.
std::string quoted(const Tokenizer& tokenizer, int32_t id) {
  return nlohmann::json(to_valid_utf8(tokenizer.token_bytes(id))).dump();
}

void print_logprobs(const TextGeneration& generation, const Tokenizer& tokenizer) {
  std::string table;
  for (const SampledToken& token : generation.tokens()) {
    table += fmt::format("{:9.4f}  {:<16}", token.logprob, quoted(tokenizer, token.id));
    const char* separator = "  of  ";
    for (const auto& [id, logprob] : token.top) {
      table += fmt::format("{}{} {:.4f}", separator, quoted(tokenizer, id), logprob);
      separator = ", ";
    }
    table += "\n";
  }
  print("\n" + table);
}

void print_summary(Generator& generator, const TextGeneration& generation, uint64_t seed) {
  const Sequence& sequence = *generation.sequence();
  const double rate = generation.decode_rate();
  std::string text = fmt::format("\nload    {:>9}  {}\n", human_seconds(generator.load_seconds()),
                                 generator.backend().description());
  text += fmt::format("prompt  {:>9}  {} tokens", human_seconds(generation.prompt_seconds()),
                      sequence.prompt_tokens);
  if (generation.prompt_rate() > 0) text += fmt::format(", {:.1f} tokens/s", generation.prompt_rate());
  text += fmt::format("\ndecode  {:>9}  {} tokens", human_seconds(generation.decode_seconds()),
                      sequence.generated());
  if (rate > 0)
    text += fmt::format(", {:.1f} tokens/s, {:.2f} GB/s of weights", rate,
                        rate * double(generator.model().bytes_per_token()) * 1e-9);
  text += fmt::format("\nended   {:>9}  peak memory {}", name_of(sequence.finish),
                      human_bytes(double(peak_memory_bytes())));
  if (sequence.params.sampling.temperature > 0) text += fmt::format(", seed {}", seed);
  fmt::print(stderr, "{}\n", text);
}

nlohmann::json result_json(Generator& generator, const TextGeneration& generation, uint64_t seed) {
  nlohmann::json object = generation.json();
  const double rate = generation.decode_rate();
  object["seconds"] = generation.prompt_seconds() + generation.decode_seconds();
  object["tokens_per_second"] = rate;
  object["prompt_tokens_per_second"] = generation.prompt_rate();
  object["bandwidth_gb_s"] = rate * double(generator.model().bytes_per_token()) * 1e-9;
  object["load_seconds"] = generator.load_seconds();
  object["peak_memory_bytes"] = peak_memory_bytes();
  object["seed"] = seed;
  return object;
}

void generate_one(const GenerateOptions& options, const GlobalOptions& global) {
  const std::string prompt = prompt_text(options);
  Generator generator(options, global);
  std::vector<int32_t> ids = generator.tokenizer().encode(prompt);
  GenerationParams params = generator.fitted(options.params, options.max_tokens, int64_t(ids.size()));
  params.sampling.seed = options.seed.value_or(random_seed());
  const uint64_t seed = params.sampling.seed;
  const std::string echo = options.echo ? to_valid_utf8(prompt) : "";
  if (!options.json) print(echo);
  TextGeneration generation(generator.tokenizer(), std::move(ids), std::move(params), options.stop,
                            [&](std::string_view piece) {
                              if (!options.json) print(piece);
                            });
  generator.run(generation);
  if (options.json) {
    nlohmann::json object = result_json(generator, generation, seed);
    object["text"] = echo + generation.text();
    print_json(object);
  } else {
    print("\n");
    if (options.params.sampling.logprobs >= 0) print_logprobs(generation, generator.tokenizer());
  }
  if (!global.quiet) print_summary(generator, generation, seed);
  check_interrupt();
}

void generate(const GenerateOptions& options, const GlobalOptions& global) {
  options.params.check();
  StopStrings check_only(options.stop);
  if (options.json && (options.interactive || !options.batch_file.empty()))
    throw Error(
        "--json prints one object: it goes with neither --interactive nor --batch (which prints one per "
        "line)");
  if (!options.batch_file.empty()) {
    if (options.interactive || options.prompt || !options.prompt_file.empty())
      throw Error("--batch brings its own prompts: it goes with neither --prompt, --file nor --interactive");
    return generate_batch(options, global);
  }
  if (options.prompt && !options.prompt_file.empty()) throw Error("--prompt and --file exclude each other");
  if (options.interactive) return generate_interactively(options, global);
  generate_one(options, global);
}

}  // namespace

Generator::Generator(const GenerateOptions& options, const GlobalOptions& global)
    : backend_(find_backend(global.backend_with(options.activations))),
      loaded_(load(options.model, *backend_)),
      cache_type_(options.cache_type) {
  const int64_t positions = model().facts().max_positions;
  if (options.context > positions)
    throw Error(
        str("--ctx is ", options.context, ", expected at most the model's ", positions, " positions"));
  context_ = options.context > 0 ? options.context : positions;
  for (const auto& [id, bias] : options.params.sampling.logit_bias)
    if (id >= loaded_.usable_vocab())
      throw Error(str("--logit-bias names token ", id, ", expected 0 to ", loaded_.usable_vocab() - 1));
  check_interrupt();
}

GenerationParams Generator::fitted(GenerationParams base, int64_t max_tokens, int64_t prompt_tokens) const {
  if (prompt_tokens > context_)
    throw Error(str("the prompt has ", prompt_tokens, " tokens, expected at most ", context_,
                    ", what the context holds"));
  const int64_t room = context_ - prompt_tokens + 1;  // the last token is never read back
  if (max_tokens > room)
    spdlog::info("only {} of {} tokens fit the context of {} behind a prompt of {}", room, max_tokens,
                 context_, prompt_tokens);
  base.max_tokens = max_tokens < 0 ? room : std::min(max_tokens, room);
  base.min_tokens = std::min(base.min_tokens, base.max_tokens);
  return base;
}

Engine Generator::engine(int64_t positions, const SchedulerLimits& limits) {
  return Engine(*backend_, model(),
                {.limits = limits,
                 .context = context_,
                 .cache_positions = positions,
                 .cache_type = cache_type_,
                 .usable_vocab = loaded_.usable_vocab()});
}

void Generator::run(TextGeneration& generation) {
  Sequence& sequence = *generation.sequence();
  Engine runner = engine(sequence.prompt_tokens + sequence.params.max_tokens);
  runner.add(generation.sequence());
  while (runner.step())
    if (interrupt_requested()) sequence.cancel_requested = true;
  generation.finish();
}

uint64_t random_seed() {
  return std::random_device{}();
}

Subcommand add_generate(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* app = root.add_subcommand("generate", "Continue a text");
  add_generate_flags(*app, *options);
  return {app, [options, &global] { generate(*options, global); }};
}

}  // namespace ballast
