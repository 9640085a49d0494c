#include "tools/console.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace ballast {
namespace {

std::atomic<int> g_signals{0};
static_assert(std::atomic<int>::is_always_lock_free, "the handler may use nothing else");

void on_signal(int) {
  if (g_signals.fetch_add(1) > 0) _exit(kExitInterrupted);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;  // without SA_RESTART: a blocked read must return
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

bool interrupt_requested() {
  return g_signals.load() > 0;
}

void check_interrupt() {
  if (interrupt_requested()) throw Interrupted{};
}

void clear_interrupt() {
  g_signals = 0;
}

void print(std::string_view text) {
  const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  if (written != text.size() || std::fflush(stdout) != 0)
    throw RuntimeFailure(str("cannot write to standard output: ", std::strerror(errno)));
}

void print_json(const nlohmann::json& object) {
  print(object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

Progress::Progress(const GlobalOptions& global)
    : enabled_(!global.quiet), terminal_(isatty(STDERR_FILENO) == 1) {
  if (!terminal_) last_ = now();  // in a log, only what takes long is worth a line
}

Progress::~Progress() {
  finish();
}

void Progress::update(const std::string& line) {
  if (!enabled_) return;
  const double pause = terminal_ ? 0.1 : 10;
  if (now() - last_ < pause) return;
  last_ = now();
  if (!terminal_) {
    fmt::print(stderr, "{}\n", line);
    return;
  }
  fmt::print(stderr, "\r{:<{}}", line, shown_);
  std::fflush(stderr);
  shown_ = line.size();
}

void Progress::finish() {
  if (shown_ > 0) fmt::print(stderr, "\r{:<{}}\r", "", shown_);
  shown_ = 0;
}

std::string human_bytes(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", int64_t(bytes))
                   : fmt::format("{:.{}f} {}", bytes, bytes < 10 ? 2 : 1, units[unit]);
}

std::string human_seconds(double seconds) {
  if (seconds < 10) return fmt::format("{:.2f} s", seconds);
  if (seconds < 100) return fmt::format("{:.1f} s", seconds);
  const auto whole = int64_t(seconds + 0.5);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

}  // namespace ballast
