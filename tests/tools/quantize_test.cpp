// `ballast quantize` from outside.
#include <gtest/gtest.h>

#include <array>

#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

std::vector<std::string> quick(const std::filesystem::path& output, std::vector<std::string> more) {
  std::vector<std::string> arguments = {"quantize",
                                        "-m",
                                        kDemo,
                                        "-o",
                                        output.string(),
                                        "--samples",
                                        "2",
                                        "--length",
                                        "64",
                                        "--calibration",
                                        std::string(kDemo) + "/sample.txt"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(QuantizeCommand, DefaultsFollowTheMethod) {
  const TempFolder folder;
  const struct {
    std::vector<std::string> flags;
    const char* compensation;
    bool drift;
  } cases[] = {
      {{}, "joint", true},
      {{"--method", "rtn"}, "channel", false},
      {{"--compensate", "none"}, "none", false},
      {{"--no-correct-drift"}, "joint", false},
      {{"--method", "rtn", "--correct-drift"}, "channel", true},
  };
  for (const auto& expected : cases) {
    std::vector<std::string> flags = {"--bits", "4", "--json", "--quiet", "--force"};
    flags.insert(flags.end(), expected.flags.begin(), expected.flags.end());
    const Outcome run = ballast(quick(folder / "out", flags));
    ASSERT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.json().at("compensation"), expected.compensation);
    EXPECT_EQ(run.json().at("correct_drift"), expected.drift) << testing::PrintToString(expected.flags);
    EXPECT_GT(run.json().at("output_bytes").get<int64_t>(), 0);
    EXPECT_EQ(run.json().at("layers").size(), 24u);
  }
}

TEST(QuantizeCommand, EveryMethodWritesAModelThatRuns) {
  const TempFolder folder;
  const struct {
    std::vector<std::string> flags;
    double least, most;  ///< bits per weight
  } cases[] = {
      {{"--bits", "3", "--method", "comq", "--sweeps", "2"}, 3, 3.1},
      // Statistics in 3 bits per row and group of 16, four halves per tile, row offsets; a few outliers.
      {{"--bits", "4", "--method", "spqr"}, 4.62, 5.2},
      // Two bits a weight and seven halves per row and 128 columns.
      {{"--method", "billm"}, 2.87, 2.89},
  };
  for (const auto& method : cases) {
    std::vector<std::string> flags = {"--json", "--quiet", "--force"};
    flags.insert(flags.end(), method.flags.begin(), method.flags.end());
    const Outcome run = ballast(quick(folder / "out", flags));
    ASSERT_EQ(run.code, 0) << run.err;
    EXPECT_GE(run.json().at("bits_per_weight"), method.least) << run.json().at("method");
    EXPECT_LE(run.json().at("bits_per_weight"), method.most) << run.json().at("method");
    const Outcome text =
        ballast({"generate", "-m", (folder / "out").string(), "-p", "The", "-n", "4", "--json"});
    EXPECT_EQ(text.code, 0) << text.err;
  }
}

TEST(QuantizeCommand, SelfCalibrationNeedsNoText) {
  const TempFolder folder;
  const Outcome run = ballast({"quantize", "-m", kDemo, "-o", (folder / "out").string(), "--bits", "3",
                               "--samples", "2", "--length", "32", "--json", "--quiet"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json().at("calibration").at("source"), "self");
  const Outcome text =
      ballast({"generate", "-m", (folder / "out").string(), "-p", "The", "-n", "4", "--json"});
  EXPECT_EQ(text.code, 0) << text.err;
}

TEST(QuantizeCommand, RefusesToOverwriteOrToQuantizeAgainUnlessForced) {
  const TempFolder folder;
  const std::vector<std::string> flags = {"--bits", "4", "--method", "rtn", "--quiet"};
  ASSERT_EQ(ballast(quick(folder / "out", flags)).code, 0);
  EXPECT_TRUE(refused(ballast(quick(folder / "out", flags)), "--force"));
  auto again = quick(folder / "again", flags);
  again[2] = (folder / "out").string();
  EXPECT_TRUE(refused(ballast(again), "is quantized already"));
  again.push_back("--force");
  EXPECT_EQ(ballast(again).code, 0);
  again[4] = again[2];
  EXPECT_TRUE(refused(ballast(again), "the model's own folder"));
}

TEST(QuantizeCommand, DryRunWritesNothing) {
  const TempFolder folder;
  const Outcome run =
      ballast(quick(folder / "out", {"--bits", "2", "--group-size", "64", "--dry-run", "--json"}));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json().at("modules"), 24);
  EXPECT_NEAR(run.json().at("bits_per_weight").get<double>(), 2 + 18.0 / 64, 1e-9);
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

TEST(QuantizeCommand, WrongArgumentsAreNamed) {
  const TempFolder folder;
  const struct {
    std::vector<std::string> flags;
    const char* part;
  } cases[] = {
      {{"--bits", "5"}, "--bits is 5, expected 2, 3, 4, 6 or 8"},
      {{"--bits", "4", "--compensate", "some"}, "--compensate is \"some\""},
      {{"--bits", "4", "--method", "rtn", "--compensate", "joint"}, "makes no sense"},
      {{"--bits", "4", "--group-size", "48"}, "does not divide"},
      {{"--bits", "4", "--override", "fc1=x"}, "\"x\" is not a whole number"},
      {{"--bits", "4", "--skip", "("}, "is not a regular expression"},
      {{"--bits", "4", "--damping", "nan"}, "--damping"},
      {{"--method", "gptq"}, "--bits is missing: expected 2, 3, 4, 6 or 8"},
      {{"--bits", "2", "--method", "billm"}, "--bits is 2, expected 1"},
      {{"--bits", "8", "--zero-points", "half"}, "--zero-points half makes no sense with --bits 8"},
      {{"--bits", "4", "--method", "spqr", "--symmetric"}, "--symmetric makes no sense with --method spqr"},
      {{"--bits", "4", "--method", "gptq", "--no-anneal"}, "nothing sweeps; add --sweeps"},
      {{"--bits", "4", "--method", "comq", "--scale-scope", "row"}, "--scale-scope is \"row\""},
      {{"--bits", "4", "--outlier-threshold", "1"}, "only spqr"},
  };
  for (const auto& wrong : cases) {
    EXPECT_TRUE(refused(ballast(quick(folder / "out", wrong.flags)), wrong.part))
        << testing::PrintToString(wrong.flags);
    EXPECT_FALSE(std::filesystem::exists(folder / "out" / "config.json"));
  }
  const std::vector<std::string> start = {"quantize", "-m", kDemo, "-o", (folder / "out").string(),
                                          "--bits",   "4"};
  for (const auto& [flag, value, part] : {std::array{"--calibration", "no-such-file", "no-such-file"},
                                          std::array{"--length", "100000", "the model's context, 512"},
                                          std::array{"--samples", "0", "--samples is 0"}}) {
    auto arguments = start;
    arguments.insert(arguments.end(), {flag, value});
    EXPECT_TRUE(refused(ballast(arguments), part));
  }
}

TEST(QuantizeCommand, InterruptedRunsLeaveNothingLoadable) {
  const TempFolder folder;
  Process process(
      {"quantize", "-m", kDemo, "-o", (folder / "out").string(), "--bits", "4", "--samples", "64"});
  usleep(400000);
  process.send(SIGINT);
  EXPECT_EQ(process.wait().code, 130);
  EXPECT_FALSE(std::filesystem::exists(folder / "out" / "config.json"));
}

}  // namespace
}  // namespace ballast
