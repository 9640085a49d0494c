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

TEST(RandomModel, ThreadsChangeNoByte) {
  const TempFolder folder;
  const auto bytes = [&](const char* threads) {
    const std::string model = (folder / threads).string();
    EXPECT_EQ(save(model, {"--bits", "3", "--threads", threads}).code, 0);
    return folder.read(std::string(threads) + "/model.safetensors");
  };
  const std::string one = bytes("1");
  EXPECT_GT(one.size(), 10000u);
  EXPECT_TRUE(one == bytes("3"));
}

TEST(RandomModel, HeadsHaveAWidthOfTheirOwn) {
  const TempFolder folder;
  const auto bits_of_head = [&](const char* name, std::vector<std::string> more) {
    const std::string model = (folder / name).string();
    EXPECT_EQ(save(model, std::move(more)).code, 0);
    EXPECT_EQ(ballast({"generate", "-m", model, "-p", "ab", "-n", "2"}).code, 0);
    const nlohmann::json facts = ballast({"inspect", model, "--json"}).json();
    for (const auto& linear : facts["linears"])
      if (linear["name"] == "model.decoder.embed_tokens") return linear["encoding"].get<std::string>();
    return std::string();
  };
  EXPECT_EQ(bits_of_head("given", {"--bits", "4", "--group-size", "32", "--head-bits", "3"}), "W3 g32");
  EXPECT_EQ(bits_of_head("usual", {"--bits", "4", "--group-size", "32"}), "W8 g32");
  EXPECT_EQ(bits_of_head("float", {"--bits", "4", "--head-bits", "16"}), "f16");
}

// Two blocks of 32 tokens give 2·32·256 values, whose share of zeros has a deviation of 0.004 at most if they are
// independent; values of a token and of a row are not quite.
TEST(RandomModel, AsManyZerosBehindReluAsAskedFor) {
  const auto zeros = [](const char* bits, const char* share) {
    const Outcome run = ballast({"bench", "--random-model", "tiny", "--bits", bits, "--relu-zeros", share,
                                 "--prompt", "32", "--generate", "0", "--repeat", "1", "--json"});
    EXPECT_EQ(run.code, 0) << run.err;
    return run.json()["relu_zeros"].get<double>();
  };
  for (const char* bits : {"16", "4", "2"}) {
    SCOPED_TRACE(bits);
    EXPECT_NEAR(zeros(bits, "0"), 0.5, 0.05);
    EXPECT_NEAR(zeros(bits, "0.75"), 0.75, 0.05);
    EXPECT_NEAR(zeros(bits, "0.95"), 0.95, 0.05);
  }
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
  EXPECT_TRUE(refused(bench({"--random-model", "tiny", "--head-bits", "8"}), "--head-bits"));
  EXPECT_TRUE(
      refused(bench({"--random-model", "tiny", "--bits", "4", "--head-bits", "7"}), "--head-bits is 7"));
  EXPECT_TRUE(refused(bench({"--random-model", "tiny", "--relu-zeros", "1"}), "--relu-zeros is 1"));
  EXPECT_TRUE(refused(bench({"-m", kDemo, "--save", "x"}), "--random-model"));
}

}  // namespace
}  // namespace ballast
