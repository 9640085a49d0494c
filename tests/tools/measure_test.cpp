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

// The same weights: what differs is the cache alone, and the reference has the plain one.
TEST(PerplexityCommand, ACacheOfCodesIsMeasuredAgainstAPlainOne) {
  const auto object =
      perplexity({"--json", "--ctx", "128", "--kv-cache-dtype", "int8", "--reference", kDemo}).json();
  EXPECT_EQ(object["kv_cache_dtype"], "int8");
  EXPECT_GT(object["kl_mean"], 0);
  EXPECT_LT(object["kl_mean"], 1e-3);
  EXPECT_EQ(object["reference_perplexity"], perplexity({"--json", "--ctx", "128"}).json()["perplexity"]);
  EXPECT_TRUE(refused(perplexity({"--kv-cache-dtype", "int4"}), "--kv-cache-dtype"));
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
  // Layers, keys and values, numbers and, of codes, a scale for every head.
  EXPECT_EQ(object["kv_cache_bytes_per_position"]["f32"], 4 * 2 * 256 * 4);
  EXPECT_EQ(object["kv_cache_bytes_per_position"]["int8"], 4 * 2 * (256 + 4 * object["heads"].get<int>()));
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
    for (const char* key : {"tokens", "tokens_per_second", "median", "bytes_per_token", "bandwidth_gb_s",
                            "share_of_read", "share_of_fma_peak"})
      EXPECT_GT(row[key], 0) << key;
  for (const char* key :
       {"model_read_gb_s", "fma_peak_gflop_s", "weight_bytes", "load_seconds", "relu_zeros"})
    EXPECT_GT(object[key], 0) << key;
  EXPECT_FALSE(object["machine"]["date"].empty());
  EXPECT_TRUE(
      refused(ballast({"bench", "-m", kDemo, "--prompt", "0", "--generate", "0"}), "nothing to measure"));
  EXPECT_TRUE(refused(ballast({"bench", "-m", kDemo, "--prompt", "513"}), "512 positions"));
}

TEST(BenchCommand, TestsAreAllPairsBehindEachDepth) {
  const std::vector<std::string> arguments = {"bench", "-m",      kDemo,  "--prompt", "4,8", "--generate",
                                              "2,3",   "--depth", "0,40", "--repeat", "1"};
  auto json = arguments, csv = arguments;
  json.push_back("--json");
  csv.push_back("--csv");
  const auto rows = ballast(json).json()["rows"];
  const std::vector<std::string> tests = {"pp4",       "pp8",       "tg2",       "tg3",
                                          "pp4 @ d40", "pp8 @ d40", "tg2 @ d40", "tg3 @ d40"};
  ASSERT_EQ(rows.size(), tests.size());
  for (size_t i = 0; i < tests.size(); ++i) EXPECT_EQ(rows[i]["test"], tests[i]);
  EXPECT_EQ(rows[2]["cache_bytes_per_token"], 0);
  // Positions, keys and values, layers, numbers, bytes.
  EXPECT_EQ(rows[6]["cache_bytes_per_token"], 40 * 2 * 4 * 256 * 4);
  const Outcome table = ballast(csv);
  EXPECT_EQ(std::count(table.out.begin(), table.out.end(), '\n'), 9);
  EXPECT_NE(table.out.find("\ntg3 @ d40,3,40,"), table.out.npos);
  csv.push_back("--json");
  EXPECT_TRUE(refused(ballast(csv), "--csv"));
  EXPECT_TRUE(refused(ballast({"bench", "-m", kDemo, "--prompt", "12,x"}), "--prompt"));
  EXPECT_TRUE(refused(ballast({"bench", "-m", kDemo, "--depth", "-1"}), "--depth is -1"));
  EXPECT_TRUE(refused(ballast({"bench", "-m", kDemo, "--prompt", "8", "--depth", "505"}), "512 positions"));
}

TEST(BenchCommand, ACacheOfCodesCountsItsBytes) {
  const auto heads = ballast({"inspect", kDemo, "--json"}).json()["heads"].get<int>();
  const auto object = ballast({"bench", "-m", kDemo, "--prompt", "0", "--generate", "8", "--depth", "40",
                               "--repeat", "1", "--kv-cache-dtype", "int8", "--json"})
                          .json();
  const int position = 2 * 4 * (256 + 4 * heads);
  EXPECT_EQ(object["rows"][0]["cache_bytes_per_token"], 40 * position);
  EXPECT_EQ(object["kv_cache_dtype"], "int8");
  EXPECT_EQ(object["kv_cache_bytes"], 48 * position);
}

TEST(BenchCommand, LinearLayersHaveRates) {
  const Outcome run =
      ballast({"bench", "--kernels", "linear", "--kernel-shapes", "tiny", "--kernel-bits", "16,4",
               "--kernel-groups", "32,0", "--kernel-tokens", "1,16", "--repeat", "1", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto object = run.json();
  EXPECT_FALSE(object.contains("kernels"));
  // Four layers; binary16, and 4 bits in two group sizes; two token counts.
  ASSERT_EQ(object["linear"].size(), 4 * 3 * 2u);
  for (const auto& row : object["linear"]) {
    for (const char* key :
         {"microseconds", "bandwidth_gb_s", "share_of_read", "gmac_per_second", "share_of_fma_peak"})
      EXPECT_GT(row[key], 0) << key;
    const double weights = row["out_features"].get<double>() * row["in_features"].get<double>();
    const double group = row["group_size"];
    EXPECT_EQ(row["weight_bytes"], row["bits"] == 16 ? 2 * weights : weights * (4 + 20 / group) / 8);
  }
  EXPECT_TRUE(refused(ballast({"bench", "--kernels", "linear", "--kernel-bits", "5"}), "--kernel-bits is 5"));
  EXPECT_TRUE(refused(ballast({"bench", "--kernels", "linear", "--kernel-shapes", "7b"}), "tiny, 125m"));
  EXPECT_TRUE(refused(ballast({"bench", "--kernels", "linear", "--kernel-groups", "96"}), "divisor of 2048"));
  EXPECT_TRUE(refused(ballast({"bench", "--kernels", "some"}), "--kernels"));
}

TEST(BenchCommand, QuantizerStepsHaveRates) {
  const Outcome run =
      ballast({"bench", "--kernels", "quantizer", "--kernel-size", "128", "--repeat", "2", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto rows = run.json()["kernels"];
  ASSERT_GE(rows.size(), 5u);  // and one more where oneDNN is installed
  for (const auto& row : rows) {
    EXPECT_GT(row["gflops_per_second"], 0) << row;
    EXPECT_EQ(row["rounds"].size(), 2u);
  }
  EXPECT_TRUE(
      refused(ballast({"bench", "--kernels", "quantizer", "--kernel-size", "200"}), "multiple of 128"));
  EXPECT_TRUE(refused(ballast({"bench"}), "--kernels"));
}

}  // namespace
}  // namespace ballast
