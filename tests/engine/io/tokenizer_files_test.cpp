// Hostile and contradictory files: one clear line, or a tokenizer that works.
#include "engine/io/tokenizer_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <functional>

#include "tests/engine/io/tokenizer_support.h"

namespace ballast::test {
namespace {

struct Bad {
  const char* name;
  std::function<void(TokenizerFiles&)> damage;
  std::vector<std::string> mentions;  // what the line must name
};

const std::string kTinyJson = R"({"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE",
  "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})";

/// Damage of a tokenizer.json: `from` becomes `to`.
std::function<void(TokenizerFiles&)> json_with(const std::string& from, const std::string& to) {
  return [=](TokenizerFiles& files) {
    files.tokenizer_json = kTinyJson;
    const size_t at = kTinyJson.find(from);
    CHECK(at != std::string::npos, from);
    files.tokenizer_json->replace(at, from.size(), to);
  };
}

std::function<void(TokenizerFiles&)> vocabulary_with(const std::string& token, const nlohmann::json& id) {
  return [=](TokenizerFiles& files) {
    nlohmann::json vocabulary = small_vocabulary();
    vocabulary[token] = id;
    files.vocab_json = vocabulary.dump();
  };
}

std::function<void(TokenizerFiles&)> merges(const std::string& text) {
  return [=](TokenizerFiles& files) { files.merges_txt = text; };
}

std::function<void(TokenizerFiles&)> config(const std::string& text) {
  return [=](TokenizerFiles& files) { files.tokenizer_config = text; };
}

const std::vector<Bad> kBadFiles = {
    {"truncated vocabulary", [](auto& f) { f.vocab_json->resize(1000); }, {"model/vocab.json"}},
    {"empty vocabulary file", [](auto& f) { f.vocab_json = ""; }, {"model/vocab.json"}},
    {"no tokens", [](auto& f) { f.vocab_json = "{}"; }, {"model/vocab.json"}},
    {"list for a vocabulary", [](auto& f) { f.vocab_json = "[1]"; }, {"model/vocab.json", "object"}},
    {"token twice", [](auto& f) { f.vocab_json = R"({"a": 1, "a": 2})"; }, {"model/vocab.json", "\"a\""}},
    {"id twice", vocabulary_with("zz", 260), {"model/vocab.json", "\"zz\"", "\"th\"", "260"}},
    {"negative id", vocabulary_with("zz", -1), {"model/vocab.json", "\"zz\"", "-1"}},
    {"huge id", vocabulary_with("zz", kMaxVocabulary), {"model/vocab.json", "\"zz\"", "2097152"}},
    {"id beyond 32 bits", vocabulary_with("zz", int64_t{1} << 33), {"model/vocab.json", "8589934592"}},
    {"fractional id", vocabulary_with("zz", 1.5), {"model/vocab.json", "\"zz\"", "1.5"}},
    {"id as text", vocabulary_with("zz", "0x1"), {"model/vocab.json", "\"zz\"", "0x1"}},
    {"vocabulary not UTF-8", [](auto& f) { f.vocab_json = "{\"\xFF\": 1}"; }, {"model/vocab.json"}},
    {"deep nesting", [](auto& f) { f.vocab_json = std::string(100000, '['); }, {"model/vocab.json"}},
    {"merge of an absent token", merges("th qq\n"), {"model/merges.txt", "\"qq\""}},
    {"merge into an absent token", merges("t h\nth x\n"), {"model/merges.txt", "merge 2", "\"thx\""}},
    {"merge of one token", merges("th\n"), {"model/merges.txt", "line 1", "\"th\""}},
    {"merge of three tokens", merges("t h\nt h e\n"), {"model/merges.txt", "line 2"}},
    {"merge with two spaces", merges("t  h\n"), {"model/merges.txt", "line 1"}},
    {"merges not UTF-8", merges("t h\n\xFF\xFE a\n"), {"model/merges.txt", "byte 4"}},
    {"no merges file", [](auto& f) { f.merges_txt.reset(); }, {"model", "tokenizer.json", "merges.txt"}},
    {"id beyond the model",
     [](auto& f) { f.config = R"({"vocab_size": 100})"; },
     {"config.json", "100", "261"}},
    {"opt without its token",
     [](auto& f) {
       f.tokenizer_config.reset();
       f.config = R"({"model_type": "opt"})";
       f.vocab_json = R"({"a": 0})";
       f.merges_txt = "";
     },
     {"vocab.json", "</s>", "bos_token"}},
    {"settings cut short", config(R"({"bos_token")"), {"model/tokenizer_config.json"}},
    {"settings are a list", config("[]"), {"model/tokenizer_config.json", "object"}},
    {"add_bos_token is text",
     config(R"({"add_bos_token": "true"})"),
     {"tokenizer_config.json", "add_bos_token"}},
    {"add_eos_token", config(R"({"add_eos_token": true})"), {"tokenizer_config.json", "add_eos_token"}},
    {"bos_token is a number", config(R"({"bos_token": 2})"), {"tokenizer_config.json", "bos_token"}},
    {"bos_token is absent", config(R"({"bos_token": "<none>"})"), {"vocab.json", "<none>", "bos_token"}},
    {"added id is no number",
     config(R"({"added_tokens_decoder": {"2x": {"content": "</s>"}}})"),
     {"added_tokens_decoder", "2x"}},
    {"added id is huge",
     config(R"({"added_tokens_decoder": {"99999999999999999999": {"content": "</s>"}}})"),
     {"added_tokens_decoder", "99999999999999999999"}},
    {"added id is another's", config(R"({"added_tokens_decoder": {"5": {"content": "<x>"}}})"), {"<x>", "5"}},
    {"added id contradicts",
     config(R"({"added_tokens_decoder": {"5": {"content": "</s>"}}})"),
     {"</s>", "5", "2"}},
    {"added token is long",
     config(R"({"pad_token": {"content": ")" + std::string(300, 'x') + "\"}}"),
     {"pad_token", "300"}},
    {"added token means something else", [](auto& f) { f.added_tokens = R"({"é": 180})"; }, {"é"}},
    {"added_tokens.json with text",
     [](auto& f) { f.added_tokens = R"({"<x>": "270"})"; },
     {"added_tokens.json", "<x>"}},
    {"json: cut short", json_with("]}}", ""), {"tokenizer.json"}},
    {"json: other model", json_with("\"BPE\"", "\"Unigram\""), {"tokenizer.json", "model.type", "Unigram"}},
    {"json: other splitting",
     json_with("\"ByteLevel\"", "\"Whitespace\""),
     {"tokenizer.json", "pre_tokenizer"}},
    {"json: normalizer",
     json_with("{\"pre", "{\"normalizer\": {\"type\": \"NFC\"}, \"pre"),
     {"normalizer", "NFC"}},
    {"json: dropout", json_with("\"vocab\"", "\"dropout\": 0.1, \"vocab\""), {"model.dropout", "0.1"}},
    {"json: suffix",
     json_with("\"vocab\"", "\"end_of_word_suffix\": \"</w>\", \"vocab\""),
     {"end_of_word_suffix"}},
    {"json: merge of three", json_with("\"a b\"", "[\"a\", \"b\", \"ab\"]"), {"merges[0]"}},
    {"json: merge of numbers", json_with("\"a b\"", "[1, 2]"), {"merges[0]"}},
    {"json: absent merge", json_with("\"a b\"", "[\"a\", \"c\"]"), {"tokenizer.json", "\"c\""}},
    {"json: no merges", json_with("\"merges\"", "\"merge\""), {"tokenizer.json", "model.merges"}},
    {"json: vocabulary list",
     json_with("{\"a\": 0, \"b\": 1, \"ab\": 2}", "[[\"a\", 0.5]]"),
     {"model.vocab"}},
    {"json: unknown token absent",
     json_with("\"vocab\"", "\"unk_token\": \"<u>\", \"vocab\""),
     {"<u>", "unk_token"}},
    {"json: added token without id",
     json_with("{\"pre", "{\"added_tokens\": [{\"content\": \"x\"}], \"pre"),
     {"added_tokens[0]", "id"}},
    {"json: token behind the text",
     json_with("{\"pre",
               R"({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}},
       {"SpecialToken": {"id": "a"}}]}, "pre)"),
     {"post_processor", "before the text"}},
    {"json: other post-processor",
     json_with("{\"pre", "{\"post_processor\": {\"type\": \"BertProcessing\"}, \"pre"),
     {"post_processor", "BertProcessing"}},
};

TEST(TokenizerFiles, TheUndamagedOnesOpen) {
  EXPECT_EQ(open_error(small_files()), "");
  TokenizerFiles files;
  files.tokenizer_json = kTinyJson;
  EXPECT_EQ(open_error(files), "");
}

TEST(TokenizerFiles, BadOnesGiveOneClearLine) {
  for (const Bad& bad : kBadFiles) {
    TokenizerFiles files = small_files();
    bad.damage(files);
    const std::string error = open_error(files);
    EXPECT_NE(error, "") << bad.name;
    EXPECT_EQ(error.find('\n'), std::string::npos) << bad.name << ": " << error;
    EXPECT_LT(error.size(), 500u) << bad.name << ": " << error;
    for (const std::string& mention : bad.mentions) {
      EXPECT_NE(error.find(mention), std::string::npos) << bad.name << ": " << error << "\nlacks " << mention;
    }
  }
}

TEST(TokenizerFiles, GapsAndLateIdsAreFine) {
  TokenizerFiles files = small_files();
  vocabulary_with("zz", 5000)(files);
  const auto tokenizer = open_tokenizer(files);
  EXPECT_EQ(tokenizer->vocabulary_size(), 5001);
  EXPECT_EQ(tokenizer->token_bytes(4000), "");
  EXPECT_EQ(tokenizer->token_bytes(5001), "");
  EXPECT_EQ(tokenizer->token_bytes(-1), "");
  EXPECT_FALSE(tokenizer->is_special(5001));
}

TEST(TokenizerFiles, MillionMerges) {
  // All words over a to z in order of length; each is a shorter word and one more letter.
  std::string vocabulary = small_vocabulary().dump(), list = "#version: 0.2\n";
  vocabulary.pop_back();
  std::vector<std::string> words = {""};
  for (size_t at = 0, merges = 0; merges < 1000000; ++at) {
    for (char c = 'a'; c <= 'z'; ++c) {
      words.push_back(words[at] + c);
      if (at == 0) continue;  // the letters themselves are there
      if (words.back() != "th" && words.back() != "the") {
        vocabulary += ",\"" + words.back() + "\":" + std::to_string(300 + merges);
      }
      list += words[at] + ' ' + c + '\n';
      ++merges;
    }
  }
  TokenizerFiles files = small_files();
  files.vocab_json = vocabulary + '}';
  files.merges_txt = list;
  const auto tokenizer = open_tokenizer(files);
  const auto ids = tokenizer->encode("abcdefgh", false);
  EXPECT_EQ(tokenizer->decode(ids), "abcdefgh");
  EXPECT_EQ(ids.size(), 4u);  // ab, cd, ef, gh: the pairs come first in the list
}

TEST(TokenizerFiles, TruncationAnywhereIsAnErrorOrOpens) {
  const TokenizerFiles whole = small_files();
  for (size_t size = 0; size < whole.vocab_json->size(); size += 37) {
    TokenizerFiles files = whole;
    files.vocab_json->resize(size);
    EXPECT_NE(open_error(files), "") << size;
  }
  for (size_t size = 0; size < whole.tokenizer_config->size(); ++size) {
    TokenizerFiles files = whole;
    files.tokenizer_config->resize(size);
    EXPECT_NE(open_error(files), "") << size;
  }
}

class TokenizerFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / ("tokenizer_folder_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void expect_open_error(const std::string& mention) {
    try {
      Tokenizer::open(folder_);
      ADD_FAILURE() << "opened";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(mention), std::string::npos) << error.what();
    }
  }
  std::filesystem::path folder_;
};

TEST_F(TokenizerFolder, Empty) {
  expect_open_error("no tokenizer");
}

TEST_F(TokenizerFolder, FolderInPlaceOfAFile) {
  std::filesystem::create_directory(folder_ / "vocab.json");
  expect_open_error("vocab.json");
}

TEST_F(TokenizerFolder, PipeInPlaceOfAFileDoesNotBlock) {
  ASSERT_EQ(mkfifo((folder_ / "tokenizer.json").c_str(), 0600), 0);
  expect_open_error("tokenizer.json");
}

TEST_F(TokenizerFolder, DanglingLink) {
  std::filesystem::create_symlink("nowhere", folder_ / "tokenizer.model");
  expect_open_error("tokenizer.model");
}

TEST_F(TokenizerFolder, OversizedModel) {
  std::ofstream(folder_ / "tokenizer.model").close();
  std::filesystem::resize_file(folder_ / "tokenizer.model", (uint64_t{64} << 20) + 1);
  expect_open_error("tokenizer.model");
}

}  // namespace
}  // namespace ballast::test
