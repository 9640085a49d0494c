// Random models: written, opened by every command, quantized.
#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

Outcome save(const std::filesystem::path& folder, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"bench", "--random-model", "tiny", "--save", folder.string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return ballast(arguments);
}

TEST(RandomModel, LoadsGeneratesAndQuantizes) {
  const TempFolder folder;
  const std::string model = (folder / "model").string(), quantized = (folder / "quantized").string();
  ASSERT_EQ(save(model).code, 0);
  const Outcome text = ballast({"generate", "-m", model, "-p", "Tèxt\n", "-n", "8", "--json"});
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_EQ(text.json()["prompt_tokens"], 1 + 6) << "</s> and one token a byte";
  EXPECT_EQ(text.json()["completion_tokens"], 8);
  const Outcome run =
      ballast({"quantize", "-m", model, "-o", quantized, "--bits", "4", "--samples", "4", "--length", "32",
               "--calibration", std::string(kDemo) + "/sample.txt", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  for (const auto& layer : run.json()["layers"]) {
    EXPECT_GT(layer["error_after"], 0) << layer["name"];
    EXPECT_LT(layer["error_after"], 0.2) << layer["name"];
  }
  EXPECT_EQ(ballast({"generate", "-m", quantized, "-p", "a", "-n", "2"}).code, 0);
}

TEST(RandomModel, QuantizedOnesAreStoredAsCodes) {
  for (const char* bits : {"2", "3", "4", "8"}) {
    SCOPED_TRACE(bits);
    const TempFolder folder;
    const std::string model = (folder / "model").string();
    ASSERT_EQ(save(model, {"--bits", bits, "--group-size", "32"}).code, 0);
    const auto object = ballast({"inspect", model, "--json"}).json();
    EXPECT_EQ(object["quantization_config"]["bits"], std::stoi(bits));
    EXPECT_EQ(object["linears"].size(), 2 * 6 + 1u);
    const Outcome text = ballast({"generate", "-m", model, "-p", "ab", "-n", "4", "--json"});
    EXPECT_EQ(text.code, 0) << text.err;
  }
}

TEST(RandomModel, SeedsDecideAndFewerLayersAreTheFirst) {
  const TempFolder folder;
  const auto tokens = [&](const char* name, std::vector<std::string> more) {
    const std::string model = (folder / name).string();
    EXPECT_EQ(save(model, std::move(more)).code, 0);
    return folder.read(std::string(name) + "/model.safetensors");
  };
  const std::string one = tokens("one", {}), again = tokens("again", {}),
                    other = tokens("other", {"--seed", "1"});
  EXPECT_TRUE(one == again);
  EXPECT_FALSE(one == other);
  const std::string cut = tokens("cut", {"--layers", "1"});
  const auto object = ballast({"inspect", (folder / "cut").string(), "--json"}).json();
  EXPECT_EQ(object["linears"].size(), 6 + 1u);
  // Data begin behind the header, with the embedding; a block's tensors follow in both.
  const std::string tail = cut.substr(cut.size() - 1000);
  EXPECT_NE(one.find(tail), one.npos);
}

TEST(RandomModel, BenchesWithoutAFolder) {
  const Outcome run = ballast({"bench", "--random-model", "tiny", "--bits", "4", "--prompt", "8",
                               "--generate", "2", "--repeat", "1", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json()["rows"].size(), 2u);
}

TEST(RandomModel, ImpossibleRequestsAreRefused) {
  const auto bench = [](std::vector<std::string> more) {
    more.insert(more.begin(), "bench");
    return ballast(more);
  };
  EXPECT_TRUE(refused(bench({"--random-model", "7b"}), "expected one of: tiny, 125m"));
  EXPECT_TRUE(refused(bench({"--random-model", "tiny", "--layers", "3"}), "--layers is 3"));
  EXPECT_TRUE(refused(bench({"--random-model", "tiny", "--bits", "5"}), "--bits is 5"));
  EXPECT_TRUE(refused(bench({"--random-model", "tiny", "--bits", "4", "--group-size", "48"}), "is 48"));
  EXPECT_TRUE(refused(bench({"--random-model", "tiny", "--group-size", "32"}), "--bits 16"));
  EXPECT_TRUE(refused(bench({"-m", kDemo, "--save", "x"}), "--random-model"));
}

}  // namespace
}  // namespace ballast
