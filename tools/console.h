// Stdout for results, stderr for the rest; interruption by signal.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "tools/global_options.h"

namespace ballast {

enum ExitCode { kExitDone = 0, kExitFailed = 1, kExitWrongInput = 2, kExitInterrupted = 130 };

/// Thrown after the user interrupted; main exits with 130 and prints nothing more.
struct Interrupted {};

/// Installs the SIGINT and SIGTERM handler: the first signal is remembered, the second ends the process with
/// 130.
void catch_interrupts();
/// True once a signal came.
bool interrupt_requested();
/// Throws Interrupted once a signal came: for long loops without a partial result worth keeping.
void check_interrupt();
/// Forgets the signal: it was handled.
void clear_interrupt();

/// Writes to stdout. RuntimeFailure when that fails (disk full, reader gone).
void print(std::string_view text);
/// One JSON object and a newline on stdout; ill-formed UTF-8 is replaced.
void print_json(const nlohmann::json& object);

/// A status line on stderr that overwrites itself on a terminal; elsewhere at most one line every ten
/// seconds. Nothing with --quiet.
class Progress {
 public:
  explicit Progress(const GlobalOptions& global);
  ~Progress();
  void update(const std::string& line);
  /// Ends the line, so that other output may follow.
  void finish();

 private:
  bool enabled_, terminal_;
  double last_ = -1e9;  ///< seconds, steady clock
  size_t shown_ = 0;    ///< characters on the terminal's line
};

/// "1.5 GiB", "12 s", "3 min 20 s"
std::string human_bytes(double bytes);
std::string human_seconds(double seconds);

}  // namespace ballast
