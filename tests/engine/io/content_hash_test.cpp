#include "engine/io/content_hash.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

std::string test_bytes(size_t count) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) bytes += char(i * 7 + 3);
  return bytes;
}

// Values from the reference implementation (python-xxhash).
TEST(ContentHash, IsXxh64) {
  EXPECT_EQ(hex(content_hash("")), "ef46db3751d8e999");
  EXPECT_EQ(hex(content_hash("abc")), "44bc2cf5ad770999");
  const std::pair<size_t, const char*> known[] = {
      {1, "1f25c8d0bc1f4bb6"},  {4, "9bb64b7d66ee9fda"},  {7, "9a7b149959ce60d8"},
      {8, "dab99d95c6f90092"},  {13, "f78b031308f5bfc8"}, {31, "a2aa5f33cc4a6119"},
      {32, "23c3c17ef790fd97"}, {33, "50a7cfc7ba588784"}, {63, "5e3e54b431c7493c"},
      {64, "0eb64b3ef6eeb01f"}, {77, "c4e0603b2473c094"}, {200, "a6cb3c09bc829b24"}};
  for (const auto& [count, value] : known) EXPECT_EQ(hex(content_hash(test_bytes(count))), value) << count;
}

TEST(ContentHash, HowTheBytesAreCutMakesNoDifference) {
  const std::string bytes = test_bytes(200);
  for (size_t piece = 1; piece <= 70; ++piece) {
    ContentHash hash;
    for (size_t at = 0; at < bytes.size(); at += piece) hash.add(std::string_view(bytes).substr(at, piece));
    EXPECT_EQ(hash.value(), content_hash(bytes)) << piece;
  }
}

TEST(ContentHash, OfFiles) {
  const TempFolder folder;
  const std::string bytes = test_bytes(3 << 20);
  EXPECT_EQ(content_hash_of_files({folder.write("x", bytes)}), content_hash(bytes));
  EXPECT_EQ(content_hash_of_files({folder.write("empty", "")}), content_hash(""));
  EXPECT_EQ(content_hash_of_files({folder.write("a", "some "), folder.write("b", "text")}),
            content_hash("some text"));
  EXPECT_TRUE(throws_with("missing: cannot read", [&] { content_hash_of_files({folder / "missing"}); }));
  EXPECT_TRUE(throws_with("expected a regular file", [&] { content_hash_of_files({folder.path()}); }));
}

}  // namespace
}  // namespace ballast
