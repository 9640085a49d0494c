#include "engine/io/tokenizer_words.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ballast {
namespace {

using Words = std::vector<std::string>;

Words words_of(const std::string& text) {
  Words words;
  WordSplitter splitter;
  splitter.start(text);
  for (std::string_view word; splitter.next(word);) words.emplace_back(word);
  return words;
}

TEST(WordSplitter, Words) {
  EXPECT_EQ(words_of(""), Words());
  EXPECT_EQ(words_of("Hello world"), (Words{"Hello", " world"}));
  EXPECT_EQ(words_of("I'm he'll o'Neil DON'T"),
            (Words{"I", "'m", " he", "'ll", " o", "'", "Neil", " DON", "'", "T"}));
  EXPECT_EQ(words_of("a1 23!? x_y"), (Words{"a", "1", " 23", "!?", " x", "_", "y"}));
}

TEST(WordSplitter, TheLastSpaceGoesWithTheWordBehindIt) {
  EXPECT_EQ(words_of("a   b"), (Words{"a", "  ", " b"}));
  EXPECT_EQ(words_of("a \n b"), (Words{"a", " \n", " b"}));
  EXPECT_EQ(words_of("a\n\nb"), (Words{"a", "\n", "\n", "b"}));
  EXPECT_EQ(words_of("a  "), (Words{"a", "  "}));
  EXPECT_EQ(words_of("\u00a0\u3000b"), (Words{"\u00a0", "\u3000", "b"}));
}

TEST(WordSplitter, OnlyWhiteSpaceIsSpace) {
  EXPECT_EQ(words_of("!\u180e\u200b\ufeff!"), (Words{"!\u180e\u200b\ufeff!"}));
  EXPECT_EQ(words_of("!\u0085!"), (Words{"!", "\u0085", "!"}));
}

TEST(WordSplitter, KnowsUnicode16) {
  EXPECT_EQ(words_of("a\u1c89"), (Words{"a\u1c89"}));
  EXPECT_EQ(words_of("a\U000323af"), (Words{"a\U000323af"}));
  EXPECT_EQ(words_of("1\U00010d40\U0001d2c0"), (Words{"1\U00010d40\U0001d2c0"}));
  EXPECT_EQ(words_of("!\u0378"), (Words{"!\u0378"}));  // still unassigned
}

TEST(WordSplitter, StartsAgain) {
  WordSplitter splitter;
  std::string_view word;
  splitter.start("a b");
  EXPECT_TRUE(splitter.next(word));
  splitter.start("c");
  EXPECT_TRUE(splitter.next(word));
  EXPECT_EQ(word, "c");
  EXPECT_FALSE(splitter.next(word));
}

TEST(IsWordCharacter, Samples) {
  for (const char32_t c :
       {U'a', U'7', U'_', U'é', U'日', U'\u0301', U'\u2160', U'\u200d', U'\u24b6', U'\U00011f50'}) {
    EXPECT_TRUE(is_word_character(c)) << uint32_t{c};
  }
  for (const char32_t c : {U' ', U'-', U'.', U'½', U'€', U'\u200b', U'\U0001d2c0', U'\0'}) {
    EXPECT_FALSE(is_word_character(c)) << uint32_t{c};
  }
}

}  // namespace
}  // namespace ballast
