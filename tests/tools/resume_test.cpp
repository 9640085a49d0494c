// `ballast quantize` cut short in every way, and resumed: the files are those of a run that was not.
#include <sys/mount.h>

#include <chrono>
#include <cstring>
#include <random>

#include "tests/tools/tiny_model.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;
using Files = std::map<std::string, std::string>;
using Arguments = std::vector<std::string>;

constexpr char kWork[] = ".ballast-quantize";

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void change_byte(const fs::path& path, size_t at) {
  std::string bytes = content(path);
  bytes[at] = char(bytes[at] ^ 1);
  put(path, bytes);
}

Files files_of(const fs::path& folder) {
  Files files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[fs::relative(entry.path(), folder).string()] = content(entry.path());
  return files;
}

class ResumeCommand : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempFolder(memory_folder());
    write_tiny_model(model());
    shared_->write("text.txt", content(std::string(kDemo) + "/sample.txt").substr(0, 2000));
    const auto begin = std::chrono::steady_clock::now();
    const Outcome whole = ballast(command(*shared_ / "whole"));
    ASSERT_EQ(whole.code, 0) << whole.err;
    whole_run_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    expected_ = files_of(*shared_ / "whole");
    ASSERT_GE(expected_.size(), 6u);
  }
  static void TearDownTestSuite() { delete shared_; }

  static fs::path model() { return *shared_ / "model"; }
  static Arguments command(const fs::path& output, const Arguments& more = {}) {
    Arguments arguments = {"quantize", "-m", model().string(), "-o", output.string(), "--quiet"};
    const auto given = [&](const std::string& flag) { return std::find(more.begin(), more.end(), flag) != more.end(); };
    if (!given("--target-bits")) arguments.insert(arguments.end(), {"--bits", "3"});
    const std::pair<std::string, std::string> defaults[] = {
        {"--samples", "8"},
        {"--threads", "1"},
        {"--damping", "0.1"},
        {"--calibration", (*shared_ / "text.txt").string()}};
    for (const auto& [flag, value] : defaults)
      if (!given(flag)) arguments.insert(arguments.end(), {flag, value});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  fs::path output() const { return folder_ / "out"; }

  /// What the shim does at which call below `part` of the output folder.
  struct Fault {
    std::string action;
    int64_t at = 0;
    std::string part = kWork;
  };
  Outcome run(const Fault& fault, const Arguments& more = {}) {
    return ballast(command(output(), more), "",
                   {{"LD_PRELOAD", BALLAST_FAULT_SHIM},
                    {"ASAN_OPTIONS", "verify_asan_link_order=0"},
                    {"FAULT_PATH", fault.part == "" ? output().string() : fault.part},
                    {"FAULT_AT", std::to_string(fault.at)},
                    {"FAULT_ACTION", fault.action},
                    {"FAULT_COUNT", (folder_ / "calls").string()}});
  }
  int64_t calls(const std::string& part) {
    EXPECT_EQ(run({"", 0, part}).code, 0);
    EXPECT_TRUE(files_of(output()) == expected_);
    fs::remove_all(output());
    return std::stoll(folder_.read("calls"));
  }
  /// The output folder of a run that was killed half-way, some modules done.
  void cut_short() { EXPECT_EQ(run({"kill", 60}).code, 128 + SIGKILL); }

  /// True once `done`; false when a minute passed without.
  template <class Done>
  static bool wait_until(const Done& done) {
    for (int i = 0; i < 60000 && !done(); ++i) usleep(1000);
    return done();
  }

  /// Goes on until the output is complete and compares it; empties the folder.
  void expect_resumed(const Arguments& more = {"--resume"}) {
    // Where the run was killed after the last file had its name, nothing is left to do.
    const bool complete = fs::exists(output() / "config.json") && !fs::exists(output() / kWork / "journal");
    const Outcome outcome = ballast(command(output(), more));
    if (complete)
      EXPECT_TRUE(refused(outcome, "already holds"));
    else
      EXPECT_EQ(outcome.code, 0) << outcome.err;
    const Files files = files_of(output());
    EXPECT_TRUE(files == expected_);
    for (const auto& [name, bytes] : files) EXPECT_TRUE(expected_.count(name)) << name;
    fs::remove_all(output());
  }

  static inline TempFolder* shared_ = nullptr;
  static inline Files expected_;
  static inline double whole_run_ = 0;  ///< seconds
  TempFolder folder_{memory_folder()};
};

TEST_F(ResumeCommand, AfterSigkillAtRandomMoments) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  test::Random random(seed);
  int killed = 0, finished = 0;
  while (killed < 50) {
    // Up to three times in a row, then to the end.
    for (int64_t kills = 1 + random.below(3); kills > 0; --kills) {
      Process process(command(output(), {"--resume"}));
      usleep(useconds_t(1e6 * whole_run_ * double(random.uniform(0, 1))));
      process.send(SIGKILL);
      const Outcome outcome = process.wait();
      ASSERT_TRUE(outcome.code == 128 + SIGKILL || outcome.code == 0) << outcome.err;
      killed += outcome.code != 0;
      if (outcome.code == 0) break;
      if (fs::exists(output() / "config.json")) break;
    }
    finished += fs::exists(output() / "config.json");
    ASSERT_LT(finished, 500) << "the runs are too quick to be killed";
    if (fs::exists(output())) expect_resumed();
    if (HasFailure()) return;
  }
}

TEST_F(ResumeCommand, AfterSigkillAtEveryStepOfTheJournal) {
  const int64_t all = calls(kWork);
  ASSERT_GT(all, 60);
  for (int64_t at = 1; at <= all && !HasFailure(); ++at) {
    SCOPED_TRACE(at);
    // In turn: before the call, or in the middle of a write.
    EXPECT_EQ(run({at % 2 ? "kill" : "torn", at}).code, 128 + SIGKILL);
    expect_resumed();
  }
}

TEST_F(ResumeCommand, AfterSigkillWhileTheOutputIsWritten) {
  const int64_t all = calls("");
  for (int64_t at = all; at > 0 && !HasFailure(); at -= at > all - 40 ? 1 : 17) {
    SCOPED_TRACE(at);
    EXPECT_EQ(run({"kill", at, ""}).code, 128 + SIGKILL);
    if (fs::exists(output() / "config.json")) {
      for (const auto& [name, bytes] : expected_) EXPECT_TRUE(content(output() / name) == bytes) << name;
    }
    expect_resumed();
  }
}

TEST_F(ResumeCommand, AfterFailuresOfTheDisk) {
  const int64_t all = calls("");
  for (const auto& [action, reason] : {std::pair{"full", "No space left"}, {"broken", "Input/output error"}})
    for (int64_t at = 3; at <= all && !HasFailure(); at += 11) {
      SCOPED_TRACE(str(action, " ", at));
      const Outcome outcome = run({action, at, ""});
      // Removing what is not needed any more may fail without harm.
      if (outcome.code == 0) {
        fs::remove_all(output() / kWork);
        EXPECT_TRUE(files_of(output()) == expected_);
        fs::remove_all(output());
        continue;
      }
      EXPECT_NE(outcome.err.find(reason), std::string::npos) << outcome.err;
      EXPECT_TRUE(outcome.code == 1 || outcome.code == 2) << outcome.err;
      EXPECT_FALSE(fs::exists(output() / "config.json"));
      EXPECT_EQ(outcome.code == 1 && fs::exists(output() / kWork),
                outcome.err.find("with --resume goes on") != std::string::npos)
          << outcome.err;
      expect_resumed();
    }
}

TEST_F(ResumeCommand, ShortWritesAreCompleted) {
  for (const int64_t at : {9, 10, 16, 17, 30, 31, 44, 45}) {
    EXPECT_EQ(run({"short", at}).code, 0);
    EXPECT_TRUE(files_of(output()) == expected_);
    fs::remove_all(output());
  }
}

TEST_F(ResumeCommand, AfterAFullDisk) {
  const fs::path disk = folder_ / "disk";
  fs::create_directory(disk);
  const auto size = [](int64_t kilobytes) { return str("size=", kilobytes, "k"); };
  if (::mount("none", disk.c_str(), "tmpfs", 0, size(64).c_str()) != 0)
    GTEST_SKIP() << "may not mount a tmpfs: " << std::strerror(errno);
  bool full = false, done = false;
  for (int64_t kilobytes = 32; !done && !HasFailure(); kilobytes += 16) {
    ASSERT_LT(kilobytes, 4096);
    EXPECT_EQ(::mount("none", disk.c_str(), "tmpfs", MS_REMOUNT, size(kilobytes).c_str()), 0);
    const Outcome outcome = ballast(command(disk / "out", {"--resume"}));
    done = outcome.code == 0;
    if (done) break;
    EXPECT_EQ(outcome.code, 1) << outcome.err;
    const bool beforehand = outcome.err.find("bytes of free space") != std::string::npos;
    full |= !beforehand;
    EXPECT_NE(beforehand, outcome.err.find("with --resume goes on") != std::string::npos) << outcome.err;
    EXPECT_FALSE(fs::exists(disk / "out/config.json"));
  }
  EXPECT_TRUE(full) << "the disk was never full half-way";
  EXPECT_TRUE(files_of(disk / "out") == expected_);
  ::umount(disk.c_str());
}

TEST_F(ResumeCommand, AfterInterruption) {
  for (const int signal : {SIGINT, SIGTERM}) {
    Arguments slow = {"--samples", "4096"};
    Process process(command(output(), slow));
    ASSERT_TRUE(wait_until([&] { return fs::exists(output() / kWork / "000002"); }));
    process.send(signal);
    const Outcome outcome = process.wait();
    EXPECT_EQ(outcome.code, 130);
    EXPECT_NE(outcome.err.find("interrupted; "), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("with --resume goes on"), std::string::npos) << outcome.err;
    EXPECT_FALSE(fs::exists(output() / "config.json"));
    EXPECT_TRUE(
        refused(ballast(command(output(), slow)), "continue it with --resume, or start over with --force"));
    fs::remove_all(output());
  }
  cut_short();
  EXPECT_TRUE(refused(ballast(command(output())), "holds an unfinished run"));
  expect_resumed({"--force"});
}

TEST_F(ResumeCommand, SaysWhatIsDone) {
  cut_short();
  Arguments arguments = command(output(), {"--resume"});
  arguments.erase(std::find(arguments.begin(), arguments.end(), "--quiet"));
  EXPECT_NE(ballast(arguments).err.find("ballast: resumed, 6 of 12 modules done\n"), std::string::npos);
}

TEST_F(ResumeCommand, OtherInputIsRefusedByName) {
  cut_short();
  const fs::path text = folder_.write("text.txt", content(*shared_ / "text.txt"));
  const auto resume = [&](const Arguments& more) {
    Arguments all = {"--resume"};
    all.insert(all.end(), more.begin(), more.end());
    return ballast(command(output(), all));
  };
  EXPECT_TRUE(refused(resume({"--group-size", "16"}), "otherwise: --group-size 0 -> 16; repeat"));
  EXPECT_TRUE(refused(resume({"--samples", "9"}), "--samples 8 -> 9"));
  EXPECT_TRUE(refused(resume({"--seed", "1"}), "--seed 0 -> 1"));
  EXPECT_TRUE(refused(resume({"--compensate", "none", "--method", "rtn"}), "--compensate joint -> none"));
  EXPECT_TRUE(refused(resume({"--calibration", "self"}), "--calibration a text -> self"));
  change_byte(text, 1999);
  EXPECT_TRUE(
      refused(resume({"--calibration", text.string()}), "otherwise: the calibration text changed; repeat"));
  for (const auto& [file, at] : {std::pair{"model.safetensors", size_t(5000)}, {"vocab.json", size_t(0)}}) {
    const std::string before = content(model() / file);
    if (file == std::string("vocab.json"))
      put(model() / file, before + " ");
    else
      change_byte(model() / file, before.size() - at);
    EXPECT_TRUE(refused(resume({}), str("otherwise: ", file, " changed; repeat")));
    put(model() / file, before);
  }
  // The same text under another name is the same text; all this has left what was done alone.
  change_byte(text, 1999);
  EXPECT_EQ(content(text), content(*shared_ / "text.txt"));
  expect_resumed({"--resume", "--calibration", text.string()});
}

TEST_F(ResumeCommand, OneProcessAtATime) {
  Process first(command(output(), {"--samples", "4096"}));
  const fs::path lock = output() / kWork / "lock";
  ASSERT_TRUE(wait_until([&] { return !content(lock).empty(); }));
  for (const char* flag : {"--resume", "--force", "--symmetric"})
    EXPECT_TRUE(refused(ballast(command(output(), {flag})),
                        str(output().string(), ": process ", content(lock), " is at work there")));
  first.send(SIGKILL);
  first.wait();
  expect_resumed({"--force"});
}

TEST_F(ResumeCommand, DamagedWorkIsDoneAgain) {
  cut_short();
  const Files work = files_of(output() / kWork);
  const auto restore = [&] {
    fs::create_directories(output() / kWork);
    for (const auto& [name, bytes] : work) put(output() / kWork / name, bytes);
  };
  for (const auto& [name, bytes] : work) {
    if (name == "lock" || name == "new") continue;
    // Without its first line, which says what run it is of, a journal is of no use.
    const size_t first_line = name == "journal" ? bytes.find('\n') + 1 : 0;
    for (const size_t at :
         {size_t(0), first_line, first_line + (bytes.size() - first_line) / 2, bytes.size() - 1}) {
      SCOPED_TRACE(str(name, " ", at));
      const bool useless = at < first_line;
      for (const bool cut : {false, true}) {
        restore();
        if (cut)
          put(output() / kWork / name, bytes.substr(0, at));
        else
          change_byte(output() / kWork / name, at);
        if (useless) {
          EXPECT_TRUE(refused(ballast(command(output(), {"--resume"})), "start over with --force"));
        }
        expect_resumed({useless ? "--force" : "--resume"});
      }
    }
  }
}

TEST_F(ResumeCommand, SelfCalibrationIsNotSampledAgain) {
  const Arguments self = {"--calibration", "self"};
  ASSERT_EQ(ballast(command(folder_ / "whole", self)).code, 0);
  EXPECT_EQ(run({"kill", 60}, self).code, 128 + SIGKILL);
  EXPECT_NE(content(output() / kWork / "journal").find("calibration tokens"), std::string::npos);
  ASSERT_EQ(ballast(command(output(), {"--resume", "--calibration", "self"})).code, 0);
  EXPECT_TRUE(files_of(output()) == files_of(folder_ / "whole"));
}

// The widths are chosen once and kept: killed before, while and after they are written.
TEST_F(ResumeCommand, WidthsAndTuningAfterSigkill) {
  const Arguments mixed = {"--target-bits", "3.7", "--tune", "1"};
  ASSERT_EQ(ballast(command(folder_ / "whole", mixed)).code, 0);
  const Files expected = files_of(folder_ / "whole");
  ASSERT_EQ(run({"", 0}, mixed).code, 0);
  const int64_t all = std::stoll(folder_.read("calls"));
  EXPECT_TRUE(files_of(output()) == expected);
  fs::remove_all(output());
  Arguments again = mixed;
  again.push_back("--resume");
  bool kept = false;
  for (int64_t at = 1; at <= all && !HasFailure(); at += 3) {
    SCOPED_TRACE(at);
    EXPECT_EQ(run({at % 2 ? "kill" : "torn", at}, mixed).code, 128 + SIGKILL);
    if (content(output() / kWork / "journal").find("widths") != std::string::npos) {
      const Arguments other = {"--resume", "--target-bits", "3.6", "--tune", "1"};
      if (!kept) {
        EXPECT_TRUE(refused(ballast(command(output(), other)), "--target-bits 3.7 -> 3.6"));
      }
      kept = true;
    }
    if (!fs::exists(output() / "config.json")) {
      const Outcome outcome = ballast(command(output(), again));
      EXPECT_EQ(outcome.code, 0) << outcome.err;
    }
    fs::remove_all(output() / kWork);
    EXPECT_TRUE(files_of(output()) == expected);
    fs::remove_all(output());
  }
  EXPECT_TRUE(kept);
}

TEST_F(ResumeCommand, AnOlderCheckpointStaysUntilItIsReplaced) {
  fs::copy(model(), output());
  const Files old = files_of(output());
  EXPECT_TRUE(refused(ballast(command(output())), "--force"));
  EXPECT_TRUE(files_of(output()) == old);
  EXPECT_EQ(run({"kill", 60}, {"--force"}).code, 128 + SIGKILL);
  for (const auto& [name, bytes] : old) EXPECT_TRUE(content(output() / name) == bytes) << name;
  EXPECT_EQ(ballast(command(output(), {"--resume"})).code, 0);
  EXPECT_TRUE(files_of(output()) == expected_);
}

TEST_F(ResumeCommand, NothingToResume) {
  expect_resumed();
  EXPECT_TRUE(refused(ballast(command(output(), {"--resume", "--calibration", "missing"})), "missing"));
  EXPECT_FALSE(fs::exists(output()));
}

}  // namespace
}  // namespace ballast
