// Folders that are not what they should be: one clear line, exit status 2, whatever the subcommand.
#include <sys/stat.h>

#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

class Folders : public testing::Test {
 protected:
  void SetUp() override {
    for (const auto& file : fs::directory_iterator(kDemo))
      fs::copy(file.path(), folder_.path() / file.path().filename());
  }

  // Every subcommand that reads a model says `part`.
  void expect_refused(const std::string& part, bool needs_tokenizer = false) {
    const std::string path = folder_.path().string();
    EXPECT_TRUE(refused(ballast({"generate", "-m", path, "-p", "x", "-n", "1"}), part));
    if (needs_tokenizer) return;
    EXPECT_TRUE(refused(ballast({"inspect", path}), part));
    EXPECT_TRUE(refused(ballast({"bench", "-m", path, "--generate", "0"}), part));
  }

  void change_config(const std::string& key, const nlohmann::json& value) {
    auto config = nlohmann::json::parse(folder_.read("config.json"));
    config[key] = value;
    folder_.write("config.json", config.dump());
  }

  TempFolder folder_;
};

TEST_F(Folders, TheCopyItselfWorks) {
  EXPECT_EQ(ballast({"generate", "-m", folder_.path().string(), "-p", "x", "-n", "1"}).code, 0);
}

TEST_F(Folders, Missing) {
  EXPECT_TRUE(refused(ballast({"generate", "-m", "/no/such/folder", "-p", "x"}), "/no/such/folder"));
  EXPECT_TRUE(refused(ballast({"inspect", std::string(kDemo) + "/config.json"}), "config.json"));
}

TEST_F(Folders, NoConfig) {
  fs::remove(folder_ / "config.json");
  expect_refused("config.json");
}

TEST_F(Folders, ConfigIsNotJson) {
  folder_.write("config.json", "{\"model_type\": ");
  expect_refused("config.json");
}

TEST_F(Folders, UnknownArchitecture) {
  change_config("model_type", "mystery\nmodel");
  expect_refused("expected one of: opt");
}

TEST_F(Folders, ConfigAndTensorsDisagree) {
  change_config("ffn_dim", 512);
  expect_refused("fc1");
}

TEST_F(Folders, NoWeights) {
  fs::remove(folder_ / "model.safetensors");
  expect_refused("safetensors");
}

TEST_F(Folders, WeightsCutShort) {
  fs::resize_file(folder_ / "model.safetensors", 1 << 20);
  expect_refused("model.safetensors");
}

TEST_F(Folders, WeightsAreAPipe) {
  fs::remove(folder_ / "model.safetensors");
  ASSERT_EQ(mkfifo((folder_ / "model.safetensors").c_str(), 0600), 0);
  expect_refused("model.safetensors");
}

TEST_F(Folders, NoTokenizer) {
  for (const char* name : {"vocab.json", "merges.txt"}) fs::remove(folder_ / name);
  expect_refused("", true);
  EXPECT_EQ(ballast({"inspect", folder_.path().string()}).code, 0) << "inspect needs none";
}

TEST_F(Folders, TokenizerWithMoreTokensThanTheModel) {
  auto vocabulary = nlohmann::json::parse(folder_.read("vocab.json"));
  vocabulary["extra"] = 4096;
  folder_.write("vocab.json", vocabulary.dump());
  expect_refused("ids up to 4096", true);
}

TEST_F(Folders, ValuesThatAreNotNumbersAreFound) {
  std::string bytes = folder_.read("model.safetensors");
  bytes[bytes.size() - 2] = char(0x00);
  bytes[bytes.size() - 1] = char(0x7e);  // an f16 NaN as the last value of the last tensor
  folder_.write("model.safetensors", bytes);
  const Outcome run = ballast({"inspect", folder_.path().string(), "--check-tensors", "--json"});
  EXPECT_EQ(run.code, 2);
  const auto bad = run.json()["bad_tensors"];
  ASSERT_EQ(bad.size(), 1u);
  EXPECT_EQ(bad[0]["nan"], 1);
  EXPECT_NE(run.err.find("1 NaN"), run.err.npos) << run.err;
  EXPECT_EQ(ballast({"inspect", kDemo, "--check-tensors"}).code, 0);
}

}  // namespace
}  // namespace ballast
