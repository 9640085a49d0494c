// `ballast quantize --target-bits` and `--tune` from outside.
#include <set>

#include "tests/tools/tiny_model.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

class TargetBitsCommand : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(folder_ / "model");
    std::ifstream sample(std::string(kDemo) + "/sample.txt");
    std::string text(2000, ' ');
    sample.read(text.data(), 2000);
    folder_.write("text.txt", text);
  }
  Outcome run(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"quantize",
                                          "-m",
                                          (folder_ / "model").string(),
                                          "-o",
                                          (folder_ / "out").string(),
                                          "--samples",
                                          "8",
                                          "--calibration",
                                          (folder_ / "text.txt").string(),
                                          "--damping",
                                          "0.1",
                                          "--json",
                                          "--quiet",
                                          "--force"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return ballast(arguments);
  }
  static std::map<std::string, int> widths(const nlohmann::json& report) {
    std::map<std::string, int> out;
    for (const auto& layer : report.at("layers")) out[layer.at("name")] = layer.at("bits");
    return out;
  }

  TempFolder folder_{memory_folder()};
};

TEST_F(TargetBitsCommand, MeetsTheTargetWithTheHeadAndIsWhatTheFolderHolds) {
  double before = 0;
  for (const double target : {3.3, 4.0, 5.5}) {
    const Outcome outcome = run({"--target-bits", std::to_string(target)});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const nlohmann::json report = outcome.json();
    EXPECT_GT(report.at("widths_seconds"), 0);
    const double bits = report.at("bits_per_weight");
    EXPECT_LE(bits, target * (1 + 1e-9));
    EXPECT_GT(bits, std::max(before, target - 0.5));  // the head's next width costs up to 0.35 of it
    before = bits;
    const auto chosen = widths(report);
    EXPECT_EQ(chosen.size(), 13u) << "12 layers and the head";
    std::set<int> used;
    for (const auto& [name, width] : chosen) used.insert(width);
    EXPECT_GT(used.size(), 1u);
    const nlohmann::json stored = ballast({"inspect", (folder_ / "out").string(), "--json"}).json();
    EXPECT_NEAR(stored.at("bits_per_weight").get<double>(), bits, 1e-6);
    const Outcome text =
        ballast({"generate", "-m", (folder_ / "out").string(), "-p", "The", "-n", "3", "--json"});
    EXPECT_EQ(text.code, 0) << text.err;
  }
}

TEST_F(TargetBitsCommand, WidthsThatWereGivenStay) {
  const Outcome outcome = run({"--target-bits", "5.5", "--override", "fc1=8", "--head-bits", "4", "--skip",
                               "layers.0.self_attn.k_proj"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const nlohmann::json report = outcome.json();
  const auto chosen = widths(report);
  EXPECT_EQ(chosen.size(), 12u);
  EXPECT_EQ(chosen.at("model.decoder.layers.0.fc1"), 8);
  EXPECT_EQ(chosen.at("model.decoder.layers.1.fc1"), 8);
  EXPECT_EQ(report.at("kept_float"), (std::vector<std::string>{"model.decoder.layers.0.self_attn.k_proj"}));
  EXPECT_LE(report.at("bits_per_weight"), 5.5);
  for (const auto& [name, width] : chosen)
    if (name.find("layers") == name.npos) {
      EXPECT_EQ(width, 4) << name;
    }
}

TEST_F(TargetBitsCommand, ImpossibleTargetsAreRefused) {
  EXPECT_TRUE(refused(run({"--target-bits", "2.1"}), "but the smallest widths already take "));
  EXPECT_TRUE(
      refused(run({"--target-bits", "4", "--override", "fc=8"}), "but the smallest widths already take "));
  EXPECT_TRUE(refused(run({"--target-bits", "4", "--bits", "4"}), "leave --bits out"));
  EXPECT_TRUE(refused(run({"--target-bits", "3", "--method", "billm"}), "--target-bits is 3"));
  EXPECT_FALSE(fs::exists(folder_ / "out/config.json"));
}

TEST_F(TargetBitsCommand, IsTheSameOnAnyNumberOfThreads) {
  for (const char* threads : {"1", "3"}) {
    ASSERT_EQ(run({"--target-bits", "3.7", "--tune", "1", "--threads", threads}).code, 0);
    fs::rename(folder_ / "out", folder_ / threads);
  }
  const auto bytes = [&](const std::string& name) { return folder_.read(name + "/model.safetensors"); };
  EXPECT_GT(bytes("1").size(), 1000u);
  EXPECT_TRUE(bytes("1") == bytes("3"));
}

TEST_F(TargetBitsCommand, TuningIsReportedAndRefusedWhereNothingCanBeMoved) {
  const nlohmann::json report = run({"--bits", "2", "--recipe", "fast", "--tune", "2"}).json();
  EXPECT_EQ(report.at("tune_epochs"), 2);
  EXPECT_GT(report.at("tuning_kl_before"), 0);
  EXPECT_LT(report.at("tuning_kl_after"), report.at("tuning_kl_before"));
  EXPECT_TRUE(refused(run({"--bits", "3", "--method", "spqr", "--tune", "1"}),
                      "--tune makes no sense with --method spqr"));
  EXPECT_TRUE(
      refused(run({"--method", "billm", "--tune", "1"}), "--tune makes no sense with --method billm"));
  EXPECT_TRUE(refused(run({"--bits", "3", "--compensate", "none", "--tune", "1"}), "--tune moves biases"));
}

// Before anything is calibrated: there is no such file.
TEST_F(TargetBitsCommand, TooFewBitsAreRefusedAtOnce) {
  EXPECT_TRUE(refused(ballast({"quantize", "-m", kDemo, "-o", (folder_ / "few").string(), "--target-bits",
                               "2.1", "--group-size", "64", "--dry-run"}),
                      "the smallest widths already take 2.28"));
  const Outcome run = ballast({"quantize", "-m", kDemo, "-o", (folder_ / "typo").string(), "--bits", "3",
                               "--dry-run", "--override", "fc3=2", "--skip", "fc1"});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.err.find("\"fc3\" of --override or --skip matches no module"), std::string::npos) << run.err;
  EXPECT_EQ(run.err.find("\"fc1\""), std::string::npos) << run.err;
}

}  // namespace
}  // namespace ballast
