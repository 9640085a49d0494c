// Ids to text that can be shown: characters that tokens split, stop strings that tokens split, and what is held back.
#include "engine/runtime/text_stream.h"

#include <gtest/gtest.h>

namespace ballast {
namespace {

/// Id b is byte b.
class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() {
    for (int byte = 0; byte < 256; ++byte) bytes_ += char(byte);
  }
  std::vector<int32_t> encode(std::string_view text, bool) const override {
    std::vector<int32_t> ids;
    for (const char byte : text) ids.push_back(uint8_t(byte));
    return ids;
  }
  std::string_view token_bytes(int32_t id) const override {
    return std::string_view(bytes_).substr(size_t(id), 1);
  }
  bool is_special(int32_t) const override { return false; }
  int64_t vocabulary_size() const override { return 256; }
  std::optional<int32_t> bos_id() const override { return {}; }
  std::optional<int32_t> eos_id() const override { return {}; }

 private:
  std::string bytes_;
};

const ByteTokenizer kTokenizer;

std::string shown(TextStream& stream, std::string_view bytes) {
  std::string text;
  for (const int32_t id : kTokenizer.encode(bytes, false)) text += stream.push(id);
  return text;
}

TEST(TextStream, CountsCharactersNotBytes) {
  TextStream stream(StreamDecoder(kTokenizer), {}, 3);
  EXPECT_EQ(shown(stream, "a\xC3"), "a");
  EXPECT_EQ(stream.characters(), 4);
  EXPECT_EQ(shown(stream, "\xA9\xF0\x9F\x99\x82"), "é🙂");
  EXPECT_EQ(stream.characters(), 6);
}

TEST(TextStream, ACharacterThatNeverEndsIsReplacedAtTheEnd) {
  TextStream stream(StreamDecoder(kTokenizer), {});
  EXPECT_EQ(shown(stream, "a\xF0\x9F"), "a");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.flush(), "");
}

TEST(TextStream, AStopStringIsFoundAcrossTokensAndCharacters) {
  TextStream stream(StreamDecoder(kTokenizer), {"bé"});
  EXPECT_EQ(shown(stream, "ab\xC3"), "a");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(shown(stream, "\xA9z"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.flush(), "");
}

TEST(TextStream, WhatOnlyBeganAStopStringIsShownAtTheEnd) {
  TextStream stream(StreamDecoder(kTokenizer), {"END"});
  EXPECT_EQ(shown(stream, "xEN\xC3"), "x");
  EXPECT_EQ(stream.flush(), "EN\xEF\xBF\xBD");
}

}  // namespace
}  // namespace ballast
