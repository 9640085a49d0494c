// A dialogue on the terminal: every line continues the same text.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "tools/console.h"
#include "tools/generate.h"

namespace ballast {
namespace {

constexpr const char* kHelp =
    "Each line is added to the text so far, and the model continues it.\n"
    "  /clear     start a new text\n"
    "  /history   lines typed so far\n"
    "  !N         line N of the history again\n"
    "  /text      the text so far\n"
    "  /help      this list\n"
    "  /quit      leave (as does the end of input)\n"
    "Ctrl-C stops a continuation; at the prompt it leaves.\n";

// The next line of standard input without its newline; nothing at its end.
std::optional<std::string> read_line() {
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t length = getline(&line, &capacity, stdin);
  std::optional<std::string> text;
  if (length >= 0) text.emplace(line, size_t(length));
  std::free(line);
  if (interrupt_requested()) fmt::print(stderr, "\n");  // behind the terminal's ^C
  check_interrupt();
  if (text && text->ends_with('\n')) text->pop_back();
  return text;
}

class Dialogue {
 public:
  Dialogue(const GenerateOptions& options, const GlobalOptions& global)
      : options_(options),
        generator_(options, global),
        talkative_(isatty(STDIN_FILENO) && !global.quiet),
        seed_(options.seed.value_or(random_seed())) {}

  void run() {
    if (talkative_) fmt::print(stderr, "{}seed {}; /help lists what else there is\n", kGreeting, seed_);
    if (options_.prompt) answer(*options_.prompt);
    for (;;) {
      if (talkative_) fmt::print(stderr, "> ");
      std::optional<std::string> line = read_line();
      if (!line || *line == "/quit") break;
      if (!command(*line)) answer(*line);
    }
    if (talkative_) fmt::print(stderr, "\n");
  }

 private:
  static constexpr const char* kGreeting = "Type a text to continue; ";

  bool command(std::string& line) {
    if (line.starts_with('!')) return !recall(line);
    if (!line.starts_with('/')) return line.empty();
    if (line == "/clear") {
      document_.clear();
    } else if (line == "/history") {
      for (size_t i = 0; i < history_.size(); ++i) fmt::print(stderr, "{:4}  {}\n", i + 1, history_[i]);
    } else if (line == "/text") {
      print(to_valid_utf8(generator_.tokenizer().decode(document_)) + "\n");
    } else {
      if (line != "/help") spdlog::warn("no command {}", line);
      fmt::print(stderr, "{}", kHelp);
    }
    return true;
  }

  // Replaces "!N" by that line of the history.
  bool recall(std::string& line) {
    size_t number = 0;
    const char* const end = line.data() + line.size();
    if (std::from_chars(line.data() + 1, end, number).ptr != end || number < 1 || number > history_.size()) {
      spdlog::warn("no line {} in a history of {}", line.substr(1), history_.size());
      return false;
    }
    line = history_[number - 1];
    fmt::print(stderr, "{}\n", line);
    return true;
  }

  void answer(const std::string& line) {
    history_.push_back(line);
    const bool first = document_.empty();
    const std::vector<int32_t> added = generator_.tokenizer().encode(first ? line : "\n" + line, first);
    document_.insert(document_.end(), added.begin(), added.end());
    make_room();
    GenerationParams params = generator_.fitted(options_.params, -1, int64_t(document_.size()));
    if (options_.max_tokens >= 0) params.max_tokens = std::min(params.max_tokens, options_.max_tokens);
    params.sampling.seed = seed_ + history_.size() - 1;
    if (options_.echo) print(to_valid_utf8(line));
    TextGeneration generation(generator_.tokenizer(), document_, std::move(params), options_.stop,
                              [](std::string_view piece) { print(piece); });
    generator_.run(generation);
    print("\n");
    document_ = generation.sequence()->tokens;
    if (document_.back() == generator_.model().facts().eos_id) document_.pop_back();
    if (interrupt_requested()) clear_interrupt();
  }

  // Forgets the oldest text, but not the token that begins it, when less than a quarter of the context is
  // left.
  void make_room() {
    const int64_t context = generator_.context();
    if (int64_t(document_.size()) <= context - context / 4) return;
    const int64_t dropped = int64_t(document_.size()) - context / 2;
    document_.erase(document_.begin() + 1, document_.begin() + 1 + dropped);
    spdlog::info("the context of {} is nearly full: forgot the oldest {} tokens", context, dropped);
  }

  const GenerateOptions& options_;
  Generator generator_;
  bool talkative_;
  uint64_t seed_;
  std::vector<int32_t> document_;
  std::vector<std::string> history_;
};

}  // namespace

void generate_interactively(const GenerateOptions& options, const GlobalOptions& global) {
  Dialogue(options, global).run();
}

}  // namespace ballast
