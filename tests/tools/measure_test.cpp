// perplexity, inspect and bench.
#include <cmath>

#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

const std::string kText = std::string(kDemo) + "/sample.txt";

Outcome perplexity(std::vector<std::string> more) {
  more.insert(more.begin(), {"perplexity", "-m", kDemo, "--text", kText, "--chunks", "2"});
  return ballast(more);
}

TEST(PerplexityCommand, JsonHasTheFigures) {
  const Outcome run = perplexity({"--json", "--ctx", "128"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto object = run.json();
  EXPECT_EQ(object["windows"], 2);
  EXPECT_EQ(object["tokens"], 2 * 127);
  EXPECT_EQ(object["context"], 128);
  EXPECT_EQ(object["protocol"], "gptq");
  EXPECT_EQ(object["window_nll"].size(), 2u);
  EXPECT_NEAR(std::log(object["perplexity"].get<double>()), object["nll"].get<double>(), 1e-9);
  EXPECT_GT(object["standard_error"], 0);
  for (const char* key : {"model_hash", "tokenizer_hash", "data_hash"})
    EXPECT_EQ(object[key].get<std::string>().size(), 16u);
  EXPECT_FALSE(object.contains("kl_mean"));
}

TEST(PerplexityCommand, TextOutputNamesTheProtocol) {
  const Outcome run = perplexity({"--ctx", "64", "--protocol", "llamacpp", "--quiet"});
  EXPECT_EQ(run.code, 0);
  EXPECT_NE(run.out.find("perplexity"), run.out.npos);
  EXPECT_NE(run.out.find("protocol llamacpp, 2 windows of 64"), run.out.npos) << run.out;
  EXPECT_EQ(run.err, "");
}

TEST(PerplexityCommand, AModelIsItsOwnReference) {
  const auto object = perplexity({"--json", "--ctx", "128", "--reference", kDemo}).json();
  EXPECT_EQ(object["kl_mean"], 0);
  EXPECT_EQ(object["kl_max"], 0);
  EXPECT_EQ(object["top1_agreement"], 1);
}

TEST(PerplexityCommand, APartIsWhatItWasInTheWhole) {
  const auto both = perplexity({"--json", "--ctx", "64"}).json();
  const Outcome second = ballast({"perplexity", "-m", kDemo, "--text", kText, "--ctx", "64", "--from-chunk",
                                  "1", "--chunks", "1", "--json"});
  EXPECT_EQ(second.json()["window_nll"][0], both["window_nll"][1]);
}

TEST(PerplexityCommand, ImpossibleRequestsAreRefused) {
  EXPECT_TRUE(refused(perplexity({"--dataset", "c4"}), "expected text, wikitext2 or ptb"));
  EXPECT_TRUE(refused(perplexity({"--protocol", "mine"}), "expected gptq or llamacpp"));
  EXPECT_TRUE(refused(perplexity({"--ctx", "1024"}), "--ctx is 1024"));
  EXPECT_TRUE(refused(perplexity({"--rows-joined-by", " "}), "--rows-joined-by"));
  EXPECT_TRUE(refused(perplexity({"--reference", "/no/such/folder"}), "/no/such/folder"));
  EXPECT_TRUE(refused(ballast({"perplexity", "-m", kDemo, "--text", "/no/such/file"}), "/no/such/file"));
}

TEST(InspectCommand, SaysWhatIsThere) {
  const auto object = ballast({"inspect", kDemo, "--json"}).json();
  EXPECT_EQ(object["bits_per_weight"], 16);
  EXPECT_EQ(object["tensors"].size(), 68u);
  EXPECT_EQ(object["linears"].size(), 4 * 6 + 1u);
  EXPECT_TRUE(object["quantization_config"].is_null());
  const Outcome text = ballast({"inspect", kDemo});
  EXPECT_NE(text.out.find("model.decoder.layers.*.fc1.weight"), text.out.npos);
  EXPECT_NE(ballast({"inspect", kDemo, "--tensors"}).out.find("model.decoder.layers.3.fc1.weight"),
            text.out.npos);
}

TEST(BenchCommand, JsonHasARowForEachTest) {
  const Outcome run =
      ballast({"bench", "-m", kDemo, "--prompt", "16", "--generate", "4", "--repeat", "2", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto object = run.json();
  EXPECT_GT(object["memory_read_gb_s"], 0);
  ASSERT_EQ(object["rows"].size(), 2u);
  EXPECT_EQ(object["rows"][0]["test"], "pp16");
  EXPECT_EQ(object["rows"][1]["test"], "tg4");
  for (const auto& row : object["rows"])
    for (const char* key : {"tokens", "tokens_per_second", "bytes_per_token", "bandwidth_gb_s"})
      EXPECT_GT(row[key], 0) << key;
  EXPECT_TRUE(
      refused(ballast({"bench", "-m", kDemo, "--prompt", "0", "--generate", "0"}), "nothing to measure"));
  EXPECT_TRUE(refused(ballast({"bench", "-m", kDemo, "--prompt", "513"}), "512 positions"));
}

TEST(BenchCommand, KernelsHaveRates) {
  const Outcome run = ballast({"bench", "--kernels", "--kernel-size", "128", "--repeat", "2", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto rows = run.json()["kernels"];
  ASSERT_GE(rows.size(), 5u);  // and one more where oneDNN is installed
  for (const auto& row : rows) {
    EXPECT_GT(row["gflops_per_second"], 0) << row;
    EXPECT_EQ(row["rounds"].size(), 2u);
  }
  EXPECT_TRUE(refused(ballast({"bench", "--kernels", "--kernel-size", "200"}), "multiple of 128"));
  EXPECT_TRUE(refused(ballast({"bench"}), "--kernels"));
}

}  // namespace
}  // namespace ballast
