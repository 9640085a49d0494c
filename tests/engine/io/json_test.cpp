#include "engine/io/json.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

using nlohmann::json;

std::string nested(int depth) {
  return std::string(size_t(depth), '[') + std::string(size_t(depth), ']');
}

TEST(Json, AcceptsWhatTheStandardAllows) {
  for (const char* text :
       {"{}", "[]", " null ", "-0", "1e3", "\"\\u0000\"", "\"\xC3\xA9\"", "18446744073709551615",
        "-9223372036854775808", R"({"a":{"b":[1,{"c":"d"}]},"e":[[],{}]})", "\"\\ud83d\\ude00\""}) {
    EXPECT_EQ(parse_json(text, "test"), json::parse(text)) << text;
  }
}

TEST(Json, RejectsBadText) {
  struct Row {
    std::string text, part;
  };
  const Row rows[] = {
      {"", "not valid JSON at byte"},
      {"{", "not valid JSON at byte"},
      {"{} x", "not valid JSON at byte 4"},
      {"[1,]", "not valid JSON at byte 4"},
      {"{\"a\":1,}", "not valid JSON"},
      {"// note\n1", "not valid JSON"},
      {"NaN", "not valid JSON"},
      {std::string("{}\0", 3), "not valid JSON at byte 2: a NUL byte"},
      {std::string("\"a\0\"", 4), "not valid JSON at byte 2: a NUL byte"},
      {"\xEF\xBB\xBF{}", "byte-order mark"},
      {"\"\xC0\xAF\"", "not valid JSON"},
      {"\"\xFF\"", "not valid JSON"},
      {"\"\\ud800\"", "not valid JSON"},
      {"\"a\nb\"", "not valid JSON"},
      {"1e400", "not valid JSON"},
      {"18446744073709551616", "exceeds 64 bits"},
      {"-9223372036854775809", "exceeds 64 bits"},
      {"[1, 123456789012345678901234567890123456789012345678901234567890]", "exceeds 64 bits"},
      {R"({"a":1,"a":2})", "duplicate key \"a\""},
      {R"({"x":{"a":1,"b":2,"\u0061":3}})", "duplicate key \"a\""},
      {nested(65), "nested deeper than 64"},
      {nested(1000000), "nested deeper than 64"},
      {"\"" + std::string(5000, 'x'), "not valid JSON"},
  };
  for (const Row& row : rows)
    EXPECT_TRUE(throws_with("f.json: ", [&] { parse_json(row.text, "f.json"); })) << row.text.substr(0, 60);
  for (const Row& row : rows)
    EXPECT_TRUE(throws_with(row.part, [&] { parse_json(row.text, "f.json"); })) << row.text.substr(0, 60);
}

TEST(Json, LimitsHoldExactly) {
  EXPECT_NO_THROW(parse_json(nested(64), "t"));
  const auto with = [](JsonLimits limits, const char* text) {
    return [=] { parse_json(text, "t", limits); };
  };
  EXPECT_NO_THROW(with({.depth = 2}, "[[1]]")());
  EXPECT_TRUE(throws_with("deeper than 2", with({.depth = 2}, "[[[]]]")));
  EXPECT_NO_THROW(with({.values = 4}, "[1,2,3]")());
  EXPECT_TRUE(throws_with("more than 4 JSON values", with({.values = 4}, "[1,2,3,4]")));
  EXPECT_NO_THROW(with({.array_length = 3}, "[1,2,3]")());
  EXPECT_TRUE(throws_with("array of more than 3", with({.array_length = 3}, "[1,2,3,4]")));
  EXPECT_NO_THROW(with({.bytes = 7}, "[1,2,3]")());
  EXPECT_TRUE(throws_with("8 bytes of JSON", with({.bytes = 7}, "[1,2,3] ")));
}

TEST(Json, FieldsAreCheckedByTypeAndRange) {
  const json object = parse_json(
      R"({"n":5,"big":18446744073709551615,"half":0.5,"yes":true,"text":"a","none":null,"list":[1],"map":{}})",
      "f");
  EXPECT_EQ(json_int(object, "n", "f", 5, 5), 5);
  EXPECT_EQ(json_int(object, "gone", "f", 0, 9, 7), 7);
  EXPECT_EQ(json_int(object, "none", "f", 0, 9, 7), 7);
  EXPECT_EQ(json_int(object, "n", "f", 0, 9, 7), 5);
  EXPECT_EQ(json_number(object, "half", "f", 0, 1), 0.5);
  EXPECT_EQ(json_number(object, "n", "f", 0, 9), 5.0);
  EXPECT_EQ(json_number(object, "gone", "f", 0, 1, 0.25), 0.25);
  EXPECT_TRUE(json_bool(object, "yes", "f"));
  EXPECT_TRUE(json_bool(object, "gone", "f", true));
  EXPECT_EQ(json_string(object, "text", "f"), "a");
  EXPECT_EQ(json_string(object, "none", "f", "b"), "b");
  EXPECT_EQ(json_array(object, "list", "f").size(), 1u);
  EXPECT_TRUE(json_object(object, "map", "f").empty());
  EXPECT_EQ(json_find(object, "none", "f"), nullptr);

  EXPECT_TRUE(throws_with("f: field 'n': expected an integer in [6, 9], got 5",
                          [&] { json_int(object, "n", "f", 6, 9); }));
  EXPECT_TRUE(throws_with("got 5", [&] { json_int(object, "n", "f", 0, 4); }));
  EXPECT_TRUE(throws_with("got 5", [&] { json_int(object, "n", "f", 0, 4, 1); }));
  EXPECT_TRUE(
      throws_with("got 18446744073709551615", [&] { json_int(object, "big", "f", INT64_MIN, INT64_MAX); }));
  EXPECT_TRUE(throws_with("got 0.5", [&] { json_int(object, "half", "f", 0, 9); }));
  EXPECT_TRUE(throws_with("got nothing", [&] { json_int(object, "gone", "f", 0, 9); }));
  EXPECT_TRUE(throws_with("got null", [&] { json_int(object, "none", "f", 0, 9); }));
  EXPECT_TRUE(throws_with("got true", [&] { json_number(object, "yes", "f", 0, 9); }));
  EXPECT_TRUE(throws_with("got 0.5", [&] { json_number(object, "half", "f", 0.6, 9); }));
  EXPECT_TRUE(throws_with("expected true or false, got 5", [&] { json_bool(object, "n", "f"); }));
  EXPECT_TRUE(throws_with("expected a string, got an array of 1", [&] { json_string(object, "list", "f"); }));
  EXPECT_TRUE(
      throws_with("expected an object, got an array of 1", [&] { json_object(object, "list", "f"); }));
  EXPECT_TRUE(
      throws_with("expected an array, got an object of 0 fields", [&] { json_array(object, "map", "f"); }));
  EXPECT_TRUE(throws_with("f: expected an object, got 3", [&] { json_int(json(3), "n", "f", 0, 9); }));
  EXPECT_TRUE(throws_with("f: expected an object, got 3", [&] { json_find(json(3), "n", "f"); }));
}

TEST(Json, ShownTextIsOneSafeLine) {
  EXPECT_EQ(shown("a\"b\\c"), R"("a\"b\\c")");
  EXPECT_EQ(shown("\n\x1b[31m\x7f"), R"("\x0a\x1b[31m\x7f")");
  EXPECT_EQ(shown("\xC3\xA9"), "\"\xC3\xA9\"");
  EXPECT_EQ(shown("\xC3"), R"("\xc3")");
  EXPECT_EQ(shown(std::string(100, 'x'), 5), "\"xxxxx\"...");
  EXPECT_EQ(shown(std::string_view("\0", 1)), R"("\x00")");
}

TEST(ReadFile, ReadsRegularFilesOnly) {
  const TempFolder folder;
  const auto file = folder.write("a", "hello");
  EXPECT_EQ(read_file(file, 5), "hello");
  EXPECT_EQ(read_file(folder.write("empty", ""), 0), "");
  EXPECT_FALSE(read_file("/proc/self/status", 1 << 20).empty());  // its size is given as 0
  EXPECT_TRUE(throws_with("longer than 4 bytes", [&] { read_file(file, 4); }));
  EXPECT_TRUE(throws_with("longer than 4 bytes", [&] { read_file("/proc/self/status", 4); }));
  EXPECT_TRUE(throws_with("not a regular file", [&] { read_file(folder.path(), 100); }));
  EXPECT_TRUE(throws_with("not a regular file", [&] { read_file("/dev/zero", 100); }));
  EXPECT_TRUE(throws_with("No such file", [&] { read_file(folder / "gone", 100); }));
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_TRUE(throws_with("not a regular file", [&] { read_file(folder / "fifo", 100); }));
  std::filesystem::create_symlink(file, folder / "link");
  EXPECT_EQ(read_file(folder / "link", 5), "hello");
  EXPECT_TRUE(throws_with("symbolic link", [&] { read_file(folder / "link", 5, false); }));
}

}  // namespace
}  // namespace ballast
