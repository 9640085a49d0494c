// Global flags, exit status, the two output streams.
#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

TEST(Main, VersionNamesCommitCompilerAndInstructionSet) {
  const Outcome run = ballast({"--version"});
  EXPECT_EQ(run.code, 0);
  EXPECT_EQ(run.out.rfind("ballast 0.", 0), 0u) << run.out;
  for (const char* part : {"commit", "compiler", "threads"})
    EXPECT_NE(run.out.find(part), run.out.npos) << run.out;
  EXPECT_EQ(run.err, "");
}

TEST(Main, DevicesAreListed) {
  const Outcome run = ballast({"--list-devices"});
  EXPECT_EQ(run.code, 0);
  EXPECT_NE(run.out.find("cpu "), run.out.npos);
  EXPECT_NE(run.out.find("cuda "), run.out.npos);
}

TEST(Main, HelpIsAResultAndUsageIsNot) {
  const Outcome help = ballast({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* command : {"generate", "perplexity", "quantize", "inspect", "bench"}) {
    EXPECT_NE(help.out.find(command), help.out.npos) << command;
    const Outcome own = ballast({command, "--help"});
    EXPECT_EQ(own.code, 0);
    EXPECT_NE(own.out.find("--json"), own.out.npos) << command;
  }
  const Outcome none = ballast({});
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(none.out, "");
  EXPECT_NE(none.err.find("Usage"), none.err.npos);
}

TEST(Main, WrongArgumentsAreRefusedWithOneLine) {
  EXPECT_TRUE(refused(ballast({"--no-such-flag"}), "--no-such-flag"));
  EXPECT_TRUE(refused(ballast({"no-such-command"}), "no-such-command"));
  EXPECT_TRUE(refused(ballast({"generate", "-p", "x"}), "--model is required (see ballast generate --help)"));
  EXPECT_TRUE(refused(ballast({"generate", "-m", kDemo, "--threads", "-1"}), "--threads"));
  EXPECT_TRUE(refused(ballast({"generate", "-m", kDemo, "-p", "x", "--device", "tpu"}),
                      "expected auto, cpu or cuda"));
  EXPECT_TRUE(refused(ballast({"perplexity", "-m", kDemo}), "--text is required"));
}

TEST(Main, AFullDiskIsAFailureAndNotAMistake) {
  Process process({"inspect", kDemo}, "", {}, "/dev/full");
  const Outcome run = process.wait();
  EXPECT_EQ(run.code, 1);
  EXPECT_NE(run.err.find("standard output"), run.err.npos) << run.err;
}

TEST(Main, FlagsComeFromTheEnvironmentAndTheGivenOneWins) {
  const std::vector<std::string> arguments = {"generate", "-m", kDemo, "-p", "The town", "--json"};
  const Process::Environment environment = {
      {"BALLAST_MAX_TOKENS", "3"}, {"BALLAST_QUIET", "1"}, {"BALLAST_SEED", "8"}};
  const Outcome run = ballast(arguments, "", environment);
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json()["completion_tokens"], 3);
  EXPECT_EQ(run.json()["seed"], 8);
  EXPECT_EQ(run.err, "");
  auto longer = arguments;
  longer.insert(longer.end(), {"--max-tokens", "5"});
  EXPECT_EQ(ballast(longer, "", environment).json()["completion_tokens"], 5);
  EXPECT_TRUE(refused(ballast(arguments, "", {{"BALLAST_MAX_TOKENS", "many"}}), "--max-tokens"));
}

TEST(Main, AVariableOfAnotherSubcommandDoesNotMatter) {
  EXPECT_EQ(
      ballast({"inspect", kDemo}, "", {{"BALLAST_REPEAT", "no number"}, {"BALLAST_PROMPT", "text"}}).code, 0);
}

TEST(Main, GlobalFlagsStandBeforeOrBehindTheSubcommand) {
  for (const auto& arguments :
       {std::vector<std::string>{"--quiet", "generate", "-m", kDemo, "-p", "x", "-n", "2"},
        std::vector<std::string>{"generate", "-m", kDemo, "-p", "x", "-n", "2", "--quiet"}}) {
    const Outcome run = ballast(arguments);
    EXPECT_EQ(run.code, 0);
    EXPECT_EQ(run.err, "");
  }
}

}  // namespace
}  // namespace ballast
