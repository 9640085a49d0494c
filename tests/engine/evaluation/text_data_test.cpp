#include "engine/evaluation/text_data.h"

#include "tests/support/expect_error.h"

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

}  // namespace
}  // namespace ballast
