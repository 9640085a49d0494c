// Runs the built binary as a user would.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/temp_folder.h"

extern char** environ;

namespace ballast {

inline constexpr const char* kDemo = BALLAST_SOURCE_DIR "/models/demo";

struct Outcome {
  int code = -1;  ///< exit status; 128 + signal when one ended it
  std::string out, err;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

/// A running `ballast`, its output going to files.
class Process {
 public:
  using Environment = std::map<std::string, std::string>;
  /// `out`: where standard output goes instead of a file of this object's.
  explicit Process(std::vector<std::string> arguments, const std::string& input = "",
                   Environment environment = {}, const std::string& out = "") {
    folder_.write("in", input);
    arguments.insert(arguments.begin(), BALLAST_BINARY);
    std::vector<char*> argv, envp;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    std::vector<std::string> variables;
    for (const auto& [name, value] : environment) variables.push_back(name + "=" + value);
    for (char** variable = environ; *variable; ++variable)
      if (!std::string_view(*variable).starts_with("BALLAST_")) variables.push_back(*variable);
    for (std::string& variable : variables) envp.push_back(variable.data());
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, (folder_ / "in").c_str(), O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, (out.empty() ? (folder_ / "out").string() : out).c_str(),
                                     O_WRONLY | O_CREAT, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, (folder_ / "err").c_str(), O_WRONLY | O_CREAT, 0600);
    if (posix_spawn(&pid_, BALLAST_BINARY, &actions, nullptr, argv.data(), envp.data()) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    EXPECT_GT(pid_, 0) << "cannot run " << BALLAST_BINARY;
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (pid_ > 0) {
      send(SIGKILL);
      wait();
    }
  }

  void send(int signal) { kill(pid_, signal); }
  std::string out() const { return folder_.read("out"); }
  /// True once standard output holds something; false when a minute passed without.
  bool wait_for_output() const {
    for (int i = 0; i < 6000 && out().empty(); ++i) usleep(10000);
    return !out().empty();
  }
  Outcome wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), out(), folder_.read("err")};
  }

 private:
  TempFolder folder_;
  pid_t pid_ = -1;
};

inline Outcome ballast(std::vector<std::string> arguments, const std::string& input = "",
                       Process::Environment environment = {}) {
  return Process(std::move(arguments), input, std::move(environment)).wait();
}

/// Succeeds if the arguments or what they name were refused: exit status 2, nothing on standard output, and
/// one line on standard error that begins with the program's name and contains `part`.
inline testing::AssertionResult refused(const Outcome& run, const std::string& part) {
  const auto failure = testing::AssertionFailure()
                       << "status " << run.code << ", out: " << run.out << ", err: " << run.err;
  if (run.code != 2 || !run.out.empty() || !run.err.starts_with("ballast: ")) return failure;
  if (run.err.find('\n') != run.err.size() - 1 || run.err.find(part) == run.err.npos) return failure;
  return testing::AssertionSuccess();
}

}  // namespace ballast
