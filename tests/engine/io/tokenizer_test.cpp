#include "engine/io/tokenizer.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "engine/io/tokenizer_utf8.h"

namespace ballast {
namespace {

/// One id per byte, and a few longer ones.
class FakeTokenizer final : public Tokenizer {
 public:
  explicit FakeTokenizer(bool leading_space = false) : leading_space_(leading_space) {
    for (int byte = 0; byte < 256; ++byte) tokens_[byte] = std::string(1, static_cast<char>(byte));
    tokens_[256] = "<bos>";
    tokens_[257] = " word";
    tokens_[258] = "\xE2\x82\xAC!\xF0\x9F";  // a euro sign, then half an emoji
  }
  std::vector<int32_t> encode(std::string_view, bool) const override { return {}; }
  std::string_view token_bytes(int32_t id) const override {
    const auto found = tokens_.find(id);
    return found == tokens_.end() ? std::string_view() : found->second;
  }
  bool is_special(int32_t id) const override { return id == 256; }
  int64_t vocabulary_size() const override { return 259; }
  std::optional<int32_t> bos_id() const override { return 256; }
  std::optional<int32_t> eos_id() const override { return {}; }
  bool adds_leading_space() const override { return leading_space_; }

 private:
  bool leading_space_;
  std::map<int32_t, std::string> tokens_;
};

TEST(ToValidUtf8, ReplacesMaximalSubparts) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(to_valid_utf8("plain é 😀"), "plain é 😀");
  EXPECT_EQ(to_valid_utf8("a\x80z"), "a" + r + "z");
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98"), r);     // cut at the end
  EXPECT_EQ(to_valid_utf8("\xF0\x9Fz"), r + "z");  // cut in the middle
  EXPECT_EQ(to_valid_utf8("\xE2\x82\xE2\x82\xAC"), r + "\xE2\x82\xAC");
  EXPECT_EQ(to_valid_utf8("\xC0\x80"), r + r);                  // overlong
  EXPECT_EQ(to_valid_utf8("\xE0\x9F\xBF"), r + r + r);          // overlong
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), r + r + r);          // surrogate
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80"), r + r + r + r);  // beyond U+10FFFF
  EXPECT_EQ(to_valid_utf8("\xF5\xFF"), r + r);
  EXPECT_EQ(to_valid_utf8("12345678\x80"), "12345678" + r);
}

TEST(Utf8, StepsThroughEveryCodePoint) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c == 0xD800) c = 0xE000;
    std::string text;
    append_utf8(text, c);
    const Utf8Step step = utf8_step(text + "x");
    ASSERT_EQ(step.kind, Utf8Kind::kValid) << uint32_t{c};
    ASSERT_EQ(step.length, text.size());
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(last_code_point("x" + text), c);
  }
}

TEST(Tokenizer, DecodesAndSkipsSpecialTokens) {
  const FakeTokenizer tokenizer;
  const std::vector<int32_t> ids = {256, 257, 'a', 999, -1, 256};
  EXPECT_EQ(tokenizer.decode(ids), " worda");
  EXPECT_EQ(tokenizer.decode(ids, false), "<bos> worda<bos>");
}

TEST(Tokenizer, TakesOffTheLeadingSpaceOnlyAtTheKnownStart) {
  const FakeTokenizer tokenizer(true);
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{256, 257, 257}), "word word");
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{257, 257}), " word word");
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(256), "");
  EXPECT_EQ(stream.push(257), "word");
  EXPECT_EQ(stream.push(257), " word");
}

TEST(StreamDecoder, HoldsIncompleteCharactersBack) {
  const FakeTokenizer tokenizer;
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push(0x82), "");
  EXPECT_EQ(stream.push(0xAC), "\xE2\x82\xAC");
  EXPECT_EQ(stream.push(258), "\xE2\x82\xAC!");
  EXPECT_EQ(stream.push('x'), "\xEF\xBF\xBDx");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.flush(), "");
}

TEST(StreamDecoder, EqualsDecodingAtOnce) {
  std::mt19937 random(7);
  const uint8_t bytes[] = {'a',  ' ',  0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC3,
                           0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF};
  for (const bool leading_space : {false, true}) {
    const FakeTokenizer tokenizer(leading_space);
    for (int round = 0; round < 3000; ++round) {
      std::vector<int32_t> ids(random() % 12);
      for (int32_t& id : ids)
        id = random() % 8 == 0 ? 256 + static_cast<int>(random() % 4) : bytes[random() % 16];
      for (const bool skip : {false, true}) {
        StreamDecoder stream(tokenizer, skip);
        std::string streamed;
        for (const int32_t id : ids) {
          const std::string part = stream.push(id);
          EXPECT_EQ(valid_utf8_prefix(part), part.size());
          streamed += part;
        }
        streamed += stream.flush();
        ASSERT_EQ(streamed, to_valid_utf8(tokenizer.decode(ids, skip)));
      }
    }
  }
}

}  // namespace
}  // namespace ballast
