#include "engine/evaluation/text_data.h"

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

TEST(JoinRows, TextIsTakenAsItIs) {
  EXPECT_EQ(join_rows(" a\n\n b\r\n", Dataset::text), " a\n\n b\r\n");
}

TEST(JoinRows, WikitextRowsKeepTheirNewlineAndBlankOnesAreEmpty) {
  // Rows: "", " = T = \n", "", " a b \n".
  EXPECT_EQ(join_rows(" \n = T = \n\t \n a b \n", Dataset::wikitext2), "\n\n = T = \n\n\n\n\n a b \n");
}

TEST(JoinRows, ALastLineWithoutNewlineIsARowToo) {
  EXPECT_EQ(join_rows("a\nb", Dataset::wikitext2), "a\n\n\nb");
  EXPECT_EQ(join_rows("a\nb", Dataset::ptb), "a b");
}

TEST(JoinRows, PtbRowsAreStrippedAndJoinedByASpace) {
  EXPECT_EQ(join_rows(" no it was n't \n black monday \n", Dataset::ptb), "no it was n't black monday");
}

TEST(JoinRows, WhatStandsBetweenCanBeChosen) {
  EXPECT_EQ(join_rows(" a \n b \n", Dataset::ptb, "\n\n"), "a\n\nb");
  EXPECT_EQ(join_rows("a\nb\n", Dataset::wikitext2, ""), "a\nb\n");
  EXPECT_TRUE(throws_with("--rows-joined-by", [] { join_rows("a", Dataset::text, " "); }));
}

TEST(JoinRows, NothingGivesNothing) {
  for (const Dataset dataset : {Dataset::text, Dataset::wikitext2, Dataset::ptb})
    EXPECT_EQ(join_rows("", dataset), "");
}

TEST(Dataset, NamesGoBothWays) {
  for (const Dataset dataset : {Dataset::text, Dataset::wikitext2, Dataset::ptb})
    EXPECT_EQ(dataset_from(name_of(dataset)), dataset);
  EXPECT_TRUE(throws_with("\"c4\", expected text, wikitext2 or ptb", [] { dataset_from("c4"); }));
}

TEST(Fingerprint, DoesNotDependOnHowTheBytesCame) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += char(i * 7);
  for (size_t piece : {1, 3, 8, 13, 999}) {
    Fingerprint hash;
    for (size_t begin = 0; begin < text.size(); begin += piece)
      hash.add(std::string_view(text).substr(begin, piece));
    EXPECT_EQ(hash.text(), fingerprint(text)) << piece;
  }
}

TEST(Fingerprint, SeesEveryByteItsPlaceAndTheLength) {
  const std::string text(100, 'a');
  std::vector<std::string> others = {text + 'a', text.substr(1), text + std::string(1, '\0'), ""};
  for (size_t i = 0; i < text.size(); ++i) {
    others.push_back(text);
    others.back()[i] = 'b';
  }
  std::vector<std::string> hashes = {fingerprint(text)};
  for (const std::string& other : others) hashes.push_back(fingerprint(other));
  for (size_t i = 0; i < hashes.size(); ++i) {
    EXPECT_EQ(hashes[i].size(), 16u);
    for (size_t j = 0; j < i; ++j) EXPECT_NE(hashes[i], hashes[j]) << i << " " << j;
  }
}

TEST(Fingerprint, OfFilesIsThatOfTheirContents) {
  TempFolder folder;
  EXPECT_EQ(fingerprint_files({folder.write("a", "some "), folder.write("b", "text")}),
            fingerprint("some text"));
  EXPECT_TRUE(throws_with("nothing", [&] { fingerprint_files({folder / "nothing"}); }));
}

}  // namespace
}  // namespace ballast
