// Ids against Hugging Face transformers' (see tools/golden_tokenizers.py), and round trips.
#include "engine/io/tokenizer_bpe.h"

#include <array>
#include <bit>
#include <random>
#include <thread>

#include "tests/engine/io/tokenizer_support.h"

namespace ballast::test {
namespace {

using Ids = std::vector<int32_t>;

/// FIPS 180-4.
std::string sha256(std::string message) {
  static const std::array<uint32_t, 64> k = [] {
    // The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
    std::array<uint32_t, 64> table{};
    for (uint64_t candidate = 2, found = 0; found < 64; ++candidate) {
      bool prime = true;
      for (uint64_t d = 2; d * d <= candidate; ++d) prime &= candidate % d != 0;
      if (!prime) continue;
      unsigned __int128 root = 0;  // floor(cbrt(candidate) * 2^32), bit by bit
      for (int bit = 35; bit >= 0; --bit) {
        const unsigned __int128 next = root | static_cast<unsigned __int128>(1) << bit;
        if (next * next * next <= static_cast<unsigned __int128>(candidate) << 96) root = next;
      }
      table[found++] = static_cast<uint32_t>(root);
    }
    return table;
  }();
  std::array<uint32_t, 8> h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const uint64_t bits = message.size() * 8;
  message += '\x80';
  while (message.size() % 64 != 56) message += '\0';
  for (int shift = 56; shift >= 0; shift -= 8) message += static_cast<char>(bits >> shift);
  for (size_t block = 0; block < message.size(); block += 64) {
    std::array<uint32_t, 64> w;
    for (size_t i = 0; i < 16; ++i) {
      w[i] = 0;
      for (size_t j = 0; j < 4; ++j) w[i] = w[i] << 8 | static_cast<uint8_t>(message[block + 4 * i + j]);
    }
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) +
             (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, last] = h;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t t1 =
          last + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
      const uint32_t t2 =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      last = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const std::array<uint32_t, 8> sum = {a, b, c, d, e, f, g, last};
    for (size_t i = 0; i < 8; ++i) h[i] += sum[i];
  }
  std::string hex;
  for (const uint32_t word : h) {
    for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
  }
  return hex;
}

void expect_summary(const Tokenizer& tokenizer, const std::string& text, const nlohmann::json& golden) {
  const Ids ids = tokenizer.encode(text);
  EXPECT_EQ(ids.size(), golden.at("count").get<size_t>());
  std::string bytes;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(id >> shift);
  }
  EXPECT_EQ(sha256(bytes), golden.at("sha256").get<std::string>());
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
}

/// WikiText-2's test text as its data set is evaluated.
std::string joined_rows(const std::string& raw) {
  std::string text;
  for (size_t begin = 0; begin < raw.size();) {
    const size_t end = raw.find('\n', begin) + 1;
    const std::string row = raw.substr(begin, end - begin);
    if (begin > 0) text += "\n\n";
    if (row.find_first_not_of(" \n") != std::string::npos) text += row;
    begin = end;
  }
  return text;
}

void expect_wikitext(const Tokenizer& tokenizer, const nlohmann::json& golden) {
  const std::string raw = file_text(kSharedData / "wikitext-2-raw" / "wiki.test.raw");
  expect_summary(tokenizer, raw, golden.at("wikitext2_raw"));
  expect_summary(tokenizer, joined_rows(raw), golden.at("wikitext2_joined"));
}

TokenizerFiles opt_files() {
  TokenizerFiles files = read_tokenizer_files(kSharedData / "opt-tokenizer");
  files.config = R"({"model_type": "opt", "vocab_size": 50272})";
  return files;
}

TEST(TokenizerBpe, Sha256KnownAnswer) {
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(TokenizerBpe, DemoMatchesTransformers) {
  const auto tokenizer = Tokenizer::open(BALLAST_SOURCE_DIR "/models/demo");
  const nlohmann::json& golden = tokenizer_goldens().at("demo");
  EXPECT_EQ(tokenizer->vocabulary_size(), 4096);
  EXPECT_EQ(tokenizer->bos_id(), 2);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  expect_cases(*tokenizer, golden.at("cases"));
  expect_summary(*tokenizer, file_text(kTokenizerGoldens / "torture.txt"), golden.at("torture"));
}

TEST(TokenizerBpe, DemoMatchesTransformersOnWikiText) {
  if (!std::filesystem::exists(kSharedData)) GTEST_SKIP() << "needs " << kSharedData;
  expect_wikitext(*Tokenizer::open(BALLAST_SOURCE_DIR "/models/demo"), tokenizer_goldens().at("demo"));
}

TEST(TokenizerBpe, OptMatchesTransformers) {
  if (!std::filesystem::exists(kSharedData)) GTEST_SKIP() << "needs " << kSharedData;
  const auto tokenizer = open_tokenizer(opt_files());
  const nlohmann::json& golden = tokenizer_goldens().at("opt");
  EXPECT_EQ(tokenizer->vocabulary_size(), 50265);
  EXPECT_EQ(tokenizer->bos_id(), 2);
  expect_cases(*tokenizer, golden.at("cases"));
  expect_summary(*tokenizer, file_text(kTokenizerGoldens / "torture.txt"), golden.at("torture"));
  expect_wikitext(*tokenizer, golden);
}

TEST(TokenizerBpe, BothSpellingsOfMergesMatchTransformers) {
  for (const char* name : {"tiny_strings", "tiny_pairs"}) {
    const auto tokenizer = Tokenizer::open(kTokenizerGoldens / name);
    expect_cases(*tokenizer, tokenizer_goldens().at("tiny"));
    EXPECT_EQ(tokenizer->bos_id(), 0);
    EXPECT_TRUE(tokenizer->is_special(0));
    EXPECT_FALSE(tokenizer->is_special(400));  // an added token that is not special
    EXPECT_EQ(tokenizer->token_bytes(400), "<left>");
  }
}

TEST(TokenizerBpe, AnyBytesRoundTrip) {
  const auto tokenizer = Tokenizer::open(BALLAST_SOURCE_DIR "/models/demo");
  std::mt19937 random(3);
  const std::vector<std::string> bits = {
      "the ",         "</s>", "é",  "😀",        "\xF0\x9F", "\x80", "\xFF", std::string(1, '\0'),
      "\xED\xA0\x80", " ",    "\n", "\xC2\xA0", "日本",     "\xE2", "x"};
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (size_t n = random() % 20; n > 0; --n) {
      text += random() % 3 == 0 ? std::string(1, static_cast<char>(random())) : bits[random() % bits.size()];
    }
    const Ids ids = tokenizer->encode(text, false);
    ASSERT_EQ(tokenizer->decode(ids, false), text);
  }
}

TEST(TokenizerBpe, InvalidBytesAreEncodedOneByOne) {
  const auto tokenizer = open_tokenizer(small_files());
  const Ids ids = tokenizer->encode("the\xFF\xE2\x82the", false);
  ASSERT_EQ(ids.size(), 5u);
  EXPECT_EQ(ids.front(), 261);
  EXPECT_EQ(ids.back(), 261);
  EXPECT_EQ(tokenizer->token_bytes(ids[1]), "\xFF");
  EXPECT_EQ(tokenizer->token_bytes(ids[2]), "\xE2");
}

TEST(TokenizerBpe, LongWordsAgreeWithShortOnes) {
  // A word of many equal parts that do not merge with one another takes the other algorithm, with the same
  // result.
  const auto tokenizer = open_tokenizer(small_files());
  const Ids part = tokenizer->encode("theth", false);
  ASSERT_EQ(part, (Ids{261, 260}));
  std::string word;
  Ids expected;
  for (int i = 0; i < 200000; ++i) {
    word += "theth";
    expected.insert(expected.end(), part.begin(), part.end());
  }
  EXPECT_EQ(tokenizer->encode(word, false), expected);
}

TEST(TokenizerBpe, MillionCharactersInOneWord) {
  const auto tokenizer = Tokenizer::open(BALLAST_SOURCE_DIR "/models/demo");
  for (const std::string unit : {"a", "=", " ", "\xFF", "的"}) {
    std::string text;
    while (text.size() < 1000000) text += unit;
    text += "x";
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false), false), text);
  }
}

TEST(TokenizerBpe, SharedBetweenThreads) {
  const auto tokenizer = Tokenizer::open(BALLAST_SOURCE_DIR "/models/demo");
  const std::string text = file_text(kTokenizerGoldens / "torture.txt");
  const Ids expected = tokenizer->encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) threads.emplace_back([&] { result = tokenizer->encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(TokenizerBpe, BosFollowsTheSettings) {
  TokenizerFiles files = small_files();
  EXPECT_EQ(open_tokenizer(files)->encode("the"), (Ids{2, 261}));
  EXPECT_EQ(open_tokenizer(files)->encode("the", false), (Ids{261}));
  files.tokenizer_config = R"({"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>"})";
  EXPECT_EQ(open_tokenizer(files)->encode("the"), (Ids{261}));
  files.tokenizer_config.reset();
  EXPECT_EQ(open_tokenizer(files)->encode("the"), (Ids{261}));
  files.config = R"({"model_type": "opt", "vocab_size": 262, "eos_token_id": 2})";
  EXPECT_EQ(open_tokenizer(files)->encode("the"), (Ids{2, 261}));
  EXPECT_EQ(open_tokenizer(files)->eos_id(), 2);
}

TEST(TokenizerBpe, PrefixSpaceFollowsTheSettings) {
  TokenizerFiles files = small_files();
  files.tokenizer_config = R"({"add_prefix_space": true})";
  const auto tokenizer = open_tokenizer(files);
  EXPECT_EQ(tokenizer->encode("the"), tokenizer->encode(" the"));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("the")), " the");
}

TEST(TokenizerBpe, SpecialTokensFromTheSmallFiles) {
  TokenizerFiles files = small_files();
  files.special_tokens_map = R"({"mask_token": {"content": "<unk>", "lstrip": true, "normalized": false}})";
  files.added_tokens = R"({"<new>": 270, "<gap>": 275, "<new><gap>!": 271})";
  auto tokenizer = open_tokenizer(files);
  EXPECT_EQ(tokenizer->encode("the <unk><new><gap><pad>", false), (Ids{261, 3, 270, 275, 1}));
  EXPECT_EQ(tokenizer->vocabulary_size(), 276);
  EXPECT_EQ(tokenizer->encode("<new><gap>!<new>", false), (Ids{271, 270}));  // the longest match
  EXPECT_TRUE(tokenizer->is_special(3));
  EXPECT_FALSE(tokenizer->is_special(270));
  EXPECT_EQ(tokenizer->token_bytes(272), "");

  files = small_files();
  files.tokenizer_config = R"({"add_bos_token": true, "bos_token": "</s>", "added_tokens_decoder":
    {"2": {"content": "</s>", "special": true}, "280": {"content": "<late>", "rstrip": true, "normalized": false}}})";
  tokenizer = open_tokenizer(files);
  EXPECT_EQ(tokenizer->encode("<late>  the</s>"), (Ids{2, 280, 261, 2}));
}

TEST(TokenizerBpe, UnknownBytes) {
  const char* json =
      R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "model": {"type": "BPE",
      "unk_token": UNK, "fuse_unk": FUSE, "vocab": {"a": 0, "b": 1, "?": 2}, "merges": []}})";
  const auto with = [&](const char* unknown, const char* fuse) {
    TokenizerFiles files;
    files.tokenizer_json = json;
    files.tokenizer_json->replace(files.tokenizer_json->find("UNK"), 3, unknown);
    files.tokenizer_json->replace(files.tokenizer_json->find("FUSE"), 4, fuse);
    return open_tokenizer(files);
  };
  EXPECT_EQ(with("\"?\"", "false")->encode("axyb"), (Ids{0, 2, 2, 1}));
  EXPECT_EQ(with("\"?\"", "true")->encode("axyb"), (Ids{0, 2, 1}));
  EXPECT_THROW(with("null", "true")->encode("axyb"), Error);
}

}  // namespace
}  // namespace ballast::test
