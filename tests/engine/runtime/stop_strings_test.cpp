#include "engine/runtime/stop_strings.h"

#include "tests/support/expect_error.h"

namespace ballast {
namespace {

// All text shown when `text` arrives in pieces of `piece` bytes.
std::string shown(const std::vector<std::string>& stops, const std::string& text, size_t piece,
                  bool* stopped = nullptr) {
  StopStrings stop(stops);
  std::string result;
  for (size_t begin = 0; begin < text.size(); begin += piece) result += stop.push(text.substr(begin, piece));
  result += stop.flush();
  if (stopped) *stopped = stop.stopped();
  return result;
}

TEST(StopStrings, EndsBeforeTheStringWhereverItWasCut) {
  for (size_t piece = 1; piece <= 12; ++piece) {
    bool stopped = false;
    EXPECT_EQ(shown({"stop"}, "a stovst stop and more", piece, &stopped), "a stovst ") << piece;
    EXPECT_TRUE(stopped) << piece;
  }
}

TEST(StopStrings, TheEarliestOfSeveralWins) {
  for (size_t piece = 1; piece <= 8; ++piece)
    EXPECT_EQ(shown({"three", "two", "wot"}, "one two three", piece), "one ") << piece;
}

TEST(StopStrings, AStringThatContainsItsOwnBeginningIsFound) {
  for (size_t piece = 1; piece <= 8; ++piece) EXPECT_EQ(shown({"aab"}, "xaaab", piece), "xa") << piece;
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStrings stop({"END"});
  EXPECT_EQ(stop.push("some E"), "some ");
  EXPECT_EQ(stop.push("N"), "");
  EXPECT_EQ(stop.push("d"), "ENd");
  EXPECT_EQ(stop.push("E"), "");
  EXPECT_EQ(stop.flush(), "E");
  EXPECT_FALSE(stop.stopped());
}

TEST(StopStrings, NothingIsShownAfterTheEnd) {
  StopStrings stop({"."});
  EXPECT_EQ(stop.push("a.b"), "a");
  EXPECT_EQ(stop.push("c"), "");
  EXPECT_EQ(stop.flush(), "");
}

TEST(StopStrings, WithoutStringsEverythingPasses) {
  EXPECT_EQ(shown({}, "any text", 3), "any text");
}

TEST(StopStrings, AnEmptyStringIsRefused) {
  EXPECT_TRUE(throws_with("empty", [] { StopStrings stop({"a", ""}); }));
}

}  // namespace
}  // namespace ballast
