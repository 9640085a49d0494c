#include <algorithm>
#include <sstream>

#include "tests/tools/run_ballast.h"

namespace ballast {
namespace {

std::vector<std::string> arguments(std::vector<std::string> more) {
  more.insert(more.begin(), {"generate", "-m", kDemo});
  return more;
}
Outcome generate(std::vector<std::string> more, const std::string& input = "") {
  return ballast(arguments(std::move(more)), input);
}

constexpr const char* kPrompt = "The town of";

TEST(Generate, TextGoesToStandardOutputAndTheSummaryToStandardError) {
  const Outcome run = generate({"-p", kPrompt, "-n", "8", "--seed", "4"});
  EXPECT_EQ(run.code, 0);
  for (const char* part : {"load", "prompt", "decode", "tokens/s", "GB/s", "peak memory", "seed 4"})
    EXPECT_NE(run.err.find(part), run.err.npos) << part << " in " << run.err;
  EXPECT_EQ(run.out, generate({"-p", kPrompt, "-n", "8", "--seed", "4", "--quiet"}).out);
  EXPECT_EQ(run.out.back(), '\n');
}

TEST(Generate, JsonIsOneObjectWithTheSameText) {
  const Outcome run = generate({"-p", kPrompt, "-n", "8", "--seed", "4", "--json"});
  const auto object = run.json();
  EXPECT_EQ(object["text"].get<std::string>() + "\n",
            generate({"-p", kPrompt, "-n", "8", "--seed", "4"}).out);
  EXPECT_EQ(object["token_ids"].size(), 8u);
  EXPECT_EQ(object["finish_reason"], "length");
  EXPECT_EQ(object["prompt_tokens"], 4);
  EXPECT_EQ(object["completion_tokens"], 8);
  EXPECT_GT(object["seconds"], 0);
  EXPECT_GT(object["tokens_per_second"], 0);
}

TEST(Generate, PromptFromFlagFileOrPipe) {
  TempFolder folder;
  const std::string file = folder.write("prompt", std::string(kPrompt) + "\n").string();
  const std::string expected = generate({"-p", kPrompt, "-n", "6", "--seed", "1"}).out;
  EXPECT_EQ(generate({"-f", file, "-n", "6", "--seed", "1"}).out, expected) << "the last newline is dropped";
  EXPECT_EQ(generate({"-n", "6", "--seed", "1"}, std::string(kPrompt) + "\n").out, expected);
  EXPECT_EQ(generate({"-f", "-", "-n", "6", "--seed", "1"}, kPrompt).out, expected);
  EXPECT_EQ(generate({"-p", kPrompt, "-n", "6", "--seed", "1", "--echo"}).out, kPrompt + expected);
}

TEST(Generate, SeedsRepeatAndARandomOneIsShown) {
  const auto text = [](const char* seed) {
    return generate({"-p", kPrompt, "-n", "20", "--seed", seed}).out;
  };
  EXPECT_EQ(text("5"), text("5"));
  EXPECT_NE(text("5"), text("6"));
  const auto first = generate({"-p", kPrompt, "-n", "20", "--json"}).json();
  const std::string seed = std::to_string(first["seed"].get<uint64_t>());
  EXPECT_EQ(generate({"-p", kPrompt, "-n", "20", "--json", "--seed", seed}).json()["text"], first["text"]);
}

TEST(Generate, GreedyNeedsNoSeed) {
  EXPECT_EQ(generate({"-p", kPrompt, "-n", "20", "--temperature", "0"}).out,
            generate({"-p", kPrompt, "-n", "20", "--top-k", "1"}).out);
}

TEST(Generate, StopStringsEndTheTextEvenAcrossTokens) {
  const std::string whole = generate({"-p", kPrompt, "-n", "60", "--seed", "2", "--json"}).json()["text"];
  ASSERT_GT(whole.size(), 40u);
  const std::string stop = whole.substr(21, 9);
  const auto object =
      generate({"-p", kPrompt, "-n", "60", "--seed", "2", "--json", "--stop", "@@", "--stop", stop}).json();
  EXPECT_EQ(object["text"], whole.substr(0, whole.find(stop)));
  EXPECT_EQ(object["finish_reason"], "stop");
  EXPECT_LT(object["completion_tokens"], 60);
  EXPECT_EQ(generate({"-p", kPrompt, "-n", "60", "--seed", "2", "--stop", stop}).out,
            whole.substr(0, whole.find(stop)) + "\n");
}

TEST(Generate, LogitBiasAndLogprobs) {
  const auto object = generate({"-p", kPrompt, "-n", "3", "--json", "--temperature", "0", "--logit-bias",
                                "277=100", "--logit-bias", "264=100", "--logprobs", "2"})
                          .json();
  for (const int id : object["token_ids"]) EXPECT_TRUE(id == 277 || id == 264) << id;
  ASSERT_EQ(object["logprobs"].size(), 3u);
  EXPECT_EQ(object["logprobs"][0]["top"].size(), 2u);
  EXPECT_LE(object["logprobs"][0]["logprob"], 0);
  const Outcome table = generate({"-p", kPrompt, "-n", "3", "--logprobs", "2", "--quiet"});
  EXPECT_EQ(std::count(table.out.begin(), table.out.end(), '\n'), 5) << table.out;
}

TEST(Generate, TheContextLimitsTheAnswer) {
  const auto object = generate({"-p", kPrompt, "-n", "-1", "--ctx", "16", "--ignore-eos", "--json"}).json();
  EXPECT_EQ(object["completion_tokens"], 13)
      << "16 positions, 4 taken, and a last token that is never read back";
  EXPECT_EQ(object["finish_reason"], "length");
  EXPECT_EQ(generate({"-p", kPrompt, "-n", "0", "--json"}).json()["text"], "");
}

TEST(Generate, ImpossibleValuesAreRefused) {
  EXPECT_TRUE(refused(generate({"-p", "x", "--temperature", "nan"}), "temperature is nan"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--top-p", "0"}), "top_p is 0"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--top-k", "many"}), "--top-k"));
  EXPECT_TRUE(refused(generate({"-p", "x", "-n", "-2"}), "--max-tokens"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--stop", ""}), "stop string is empty"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--logit-bias", "3"}), "expected ID=VALUE"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--logit-bias", "4096=1"}), "expected 0 to 4095"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--ctx", "513"}), "512 positions"));
  EXPECT_TRUE(refused(generate({"-p", "one two three four five six", "--ctx", "4"}), "expected at most 4"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--stop", "a", "b"}), "not expected: b"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--seed", "-1"}), "--seed"));
  EXPECT_TRUE(refused(generate({"-p", "x", "-f", "y"}), "exclude each other"));
  EXPECT_TRUE(refused(generate({"-f", "/no/such/file"}), "/no/such/file"));
  EXPECT_TRUE(refused(generate({"-p", "x", "--json", "--interactive"}), "--json"));
}

TEST(Generate, AnyBytesMayBeThePrompt) {
  const Outcome run = generate({"-n", "4", "--seed", "1", "--json", "--echo"},
                               std::string("\xff\xc3 caf\xc3\xa9 \0 end", 15));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NO_THROW(run.json());
}

TEST(GenerateBatch, ResultsComeInOrderAndEqualSingleRuns) {
  TempFolder folder;
  const std::string file =
      folder
          .write("prompts",
                 "{\"prompt\": \"The town of\", \"max_tokens\": 30, \"id\": \"long\"}\n\n"
                 "{\"prompt\": \"A\", \"max_tokens\": 2, \"seed\": 77}\n{\"prompt\": \"In 1990\", "
                 "\"temperature\": 0}")
          .string();
  const Outcome run = generate({"--batch", file, "-n", "5", "--seed", "10"});
  ASSERT_EQ(run.code, 0) << run.err;
  std::istringstream lines(run.out);
  std::vector<nlohmann::json> results;
  for (std::string line; std::getline(lines, line);) results.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[0]["id"], "long");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(results[size_t(i)]["index"], i);
  EXPECT_EQ(results[0]["text"],
            generate({"-p", kPrompt, "-n", "30", "--seed", "10", "--json"}).json()["text"]);
  EXPECT_EQ(results[1]["text"], generate({"-p", "A", "-n", "2", "--seed", "77", "--json"}).json()["text"]);
  EXPECT_EQ(results[2]["text"],
            generate({"-p", "In 1990", "-n", "5", "--temperature", "0", "--json"}).json()["text"]);
}

TEST(GenerateBatch, AWrongLineIsNamedBeforeAnythingRuns) {
  TempFolder folder;
  const auto batch = [&](const std::string& content) {
    return generate({"--batch", folder.write("b", content).string()});
  };
  EXPECT_TRUE(refused(batch("{\"prompt\": \"x\"}\n{\"promt\": 1}\n"), "b:2: "));
  EXPECT_TRUE(refused(batch("{\"prompt\": \"x\", \"temperature\": -1}\n"), "temperature is -1"));
  EXPECT_TRUE(refused(batch("{\"prompt\": \"x\", \"stop\": [1]}\n"), "stop"));
  EXPECT_TRUE(refused(batch("[1, 2]\n"), "b:1"));
  EXPECT_TRUE(refused(batch("\n \n"), "no prompts"));
  EXPECT_TRUE(refused(batch("{\"prompt\": \"" + std::string(5000, 'x') + "\"}"), "prompt 1: the prompt has"));
}

TEST(GenerateInteractive, LinesContinueOneTextAndCommandsWork) {
  const Outcome run = generate({"--interactive", "-n", "4", "--seed", "3"},
                               "The town of\n/history\n!1\n/text\n/clear\n!9\n/no\n/quit\nx\n");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.err.find("1  The town of"), run.err.npos) << run.err;
  EXPECT_NE(run.err.find("no line 9"), run.err.npos);
  EXPECT_NE(run.err.find("no command /no"), run.err.npos);
  const std::string first = run.out.substr(0, run.out.find('\n'));
  EXPECT_EQ(first + "\n", generate({"-p", kPrompt, "-n", "4", "--seed", "3"}).out);
  EXPECT_NE(run.out.find("The town of" + first + "\nThe town of"), run.out.npos)
      << "/text shows one text: " << run.out;
}

TEST(GenerateInteractive, LongDialoguesForgetTheirBeginning) {
  std::string input;
  for (int i = 0; i < 12; ++i) input += "One more line of text for the model to read.\n";
  const Outcome run = generate({"-i", "-n", "10", "--ctx", "64"}, input);
  EXPECT_EQ(run.code, 0);
  EXPECT_NE(run.err.find("forgot the oldest"), run.err.npos) << run.err;
}

TEST(GenerateInterrupted, TheFirstKeepsTheTextAndTheSummary) {
  Process process(arguments({"-p", kPrompt, "-n", "-1", "--ignore-eos", "--threads", "1"}));
  ASSERT_TRUE(process.wait_for_output());
  process.send(SIGINT);
  const Outcome run = process.wait();
  EXPECT_EQ(run.code, 130);
  EXPECT_EQ(run.out.back(), '\n');
  EXPECT_NE(run.err.find("cancelled"), run.err.npos) << run.err;
  EXPECT_NE(run.err.find("tokens/s"), run.err.npos);
}

TEST(GenerateInterrupted, JsonStaysWhole) {
  TempFolder folder;
  std::string prompts;
  for (int i = 0; i < 200; ++i)
    prompts += "{\"prompt\": \"The\", \"max_tokens\": " + std::to_string(i == 0 ? 1 : 500) + "}\n";
  Process process(
      arguments({"--batch", folder.write("b", prompts).string(), "--ignore-eos", "--parallel", "2"}));
  ASSERT_TRUE(process.wait_for_output());
  process.send(SIGTERM);
  const Outcome run = process.wait();
  EXPECT_EQ(run.code, 130);
  std::istringstream lines(run.out);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count)
    EXPECT_NO_THROW(nlohmann::json::parse(line)) << line;
  EXPECT_EQ(count, 200) << "each prompt has its line, cancelled or not";
}

}  // namespace
}  // namespace ballast
