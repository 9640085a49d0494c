#include "engine/io/safetensors.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/safetensors_bytes.h"

namespace ballast {
namespace {

/// Header entry of a tensor.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& begin, const std::string& end) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[)" + begin +
         "," + end + "]}";
}
std::string header(std::initializer_list<std::string> entries) {
  std::string out;
  for (const std::string& one : entries) out += (out.empty() ? "{" : ",") + one;
  return out + "}";
}

TEST(Safetensors, ReadsNamesShapesAndPositions) {
  const std::string text = header({R"("__metadata__":{"format":"pt"})", entry("b", "F16", "[2,3]", "4", "16"),
                                   entry("a", "U8", "[4]", "0", "4")});
  const auto tensors = parse_safetensors(safetensors_bytes(text, 16), "f", 3);
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].offset, 8 + text.size());
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, "F16");
  EXPECT_EQ(tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors[1].offset, 8 + text.size() + 4);
  EXPECT_EQ(tensors[1].bytes, 12u);
  EXPECT_EQ(tensors[1].file, 3);
  EXPECT_EQ(tensors[1].elements(), 6);
}

TEST(Safetensors, AcceptsUnusualButLegalFiles) {
  struct Row {
    const char* what;
    std::string text;
    size_t bytes, tensors;
  };
  const Row rows[] = {
      {"no tensor", "{}", 0, 0},
      {"trailing spaces", header({entry("a", "U8", "[1]", "0", "1")}) + "       ", 1, 1},
      {"empty metadata", R"({"__metadata__":{}})", 0, 0},
      {"rank 0", header({entry("a", "F32", "[]", "0", "4")}), 4, 1},
      {"zero-size tensors, same place",
       header({entry("a", "F32", "[0,5]", "0", "0"), entry("b", "I64", "[3,0]", "0", "0"),
               entry("c", "U8", "[2]", "0", "2"), entry("d", "F16", "[0]", "2", "2")}),
       2, 4},
      {"unaligned start", header({entry("a", "U8", "[1]", "0", "1"), entry("b", "F64", "[1]", "1", "9")}), 9,
       2},
      {"data order differs", header({entry("b", "U8", "[1]", "1", "2"), entry("a", "U8", "[1]", "0", "1")}),
       2, 2},
      {"8 dimensions", header({entry("a", "U8", "[1,1,1,1,1,1,1,2]", "0", "2")}), 2, 1},
      {"4-bit elements", header({entry("a", "F4", "[3,2]", "0", "3")}), 3, 1},
      {"6-bit elements", header({entry("a", "F6_E2M3", "[4]", "0", "3")}), 3, 1},
      {"unknown dtype", header({entry("a", "F128", "[1]", "0", "5")}), 5, 1},
      {"fields in another order", R"({"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}})", 1, 1},
      {"escapes in names", header({entry("\\u0061\\n", "U8", "[1]", "0", "1")}), 1, 1},
      {"empty name", header({entry("", "U8", "[1]", "0", "1")}), 1, 1},
  };
  for (const Row& row : rows) {
    try {
      EXPECT_EQ(parse_safetensors(safetensors_bytes(row.text, row.bytes), "f").size(), row.tensors)
          << row.what;
    } catch (const std::exception& error) {
      ADD_FAILURE() << row.what << ": " << error.what();
    }
  }
}

TEST(Safetensors, RejectsAttacks) {
  const auto tensor = [](const std::string& shape, const std::string& begin, const std::string& end) {
    return header({entry("a", "U8", shape, begin, end)});
  };
  const std::string two_63 = "9223372036854775808", max_63 = "9223372036854775807",
                    two_62 = "4611686018427387904";
  struct Row {
    std::string part, text;
    size_t bytes;
    int64_t length = -1;
  };
  const Row rows[] = {
      {"header length at byte 0: expected at most 100000000", "{}", 0, 100000001},
      {"header length at byte 0: expected at most 100000000, got 18446744073709551614", "{}", 0, -2},
      {"header length at byte 0: expected at most 2", "{}", 0, 3},
      {"header at byte 8: expected '{', got nothing", "", 0},
      {"header at byte 8: expected '{', got \" \"", " {}", 0},
      {"header at byte 8: expected '{', got \"[\"", "[]", 0},
      {"header at byte 8: expected '{', got \"\\xef\"", "\xEF\xBB\xBF{}", 0},
      {"not valid JSON at byte", "{", 0},
      {"not valid JSON at byte", R"({"a":)", 0},
      {"not valid JSON at byte", "{} x", 0},
      {"not valid JSON at byte", std::string("{}\0", 3), 0},
      {"not valid JSON at byte", header({entry("\xC0\x80", "U8", "[1]", "0", "1")}), 1},
      {"tensor \"a\" appears twice",
       header({entry("a", "U8", "[1]", "0", "1"), entry("a", "U8", "[1]", "1", "2")}), 2},
      {"tensor \"a\" appears twice",
       header({entry("a", "U8", "[1]", "0", "1"), entry("\\u0061", "U8", "[1]", "1", "2")}), 2},
      {"tensor \"a\" appears twice",
       header({entry("a", "U8", "[0]", "0", "0"), entry("a", "U8", "[1]", "0", "1")}), 1},
      {"tensor \"a\": duplicate field \"dtype\"",
       R"({"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1},
      {"tensor \"a\": unknown field \"strides\"",
       R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"strides":[]}})", 1},
      {"field dtype is missing", R"({"a":{"shape":[],"data_offsets":[0,1]}})", 1},
      {"field shape is missing", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1},
      {"field data_offsets is missing", R"({"a":{"dtype":"U8","shape":[1]}})", 1},
      {"expected an object of dtype, shape and data_offsets, got a number", R"({"a":1})", 0},
      {"expected an object of dtype, shape and data_offsets, got null", R"({"a":null})", 0},
      {"expected an object of dtype, shape and data_offsets, got an array", R"({"a":[]})", 0},
      {"dtype: expected a string, got a number", R"({"a":{"dtype":1,"shape":[],"data_offsets":[0,1]}})", 1},
      {"dtype: expected a string, got an array", R"({"a":{"dtype":["U8"],"shape":[],"data_offsets":[0,1]}})",
       1},
      {"shape: expected an array of unsigned integers, got a number",
       R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1},
      {"shape: expected an array of unsigned integers, got an object",
       R"({"a":{"dtype":"U8","shape":{},"data_offsets":[0,1]}})", 1},
      {"shape: expected an array of unsigned integers, got an array", tensor("[[1]]", "0", "1"), 1},
      {"shape: expected an array of unsigned integers, got a string", tensor("[\"1\"]", "0", "1"), 1},
      {"shape: expected an array of unsigned integers, got the number -1", tensor("[-1]", "0", "1"), 1},
      {"shape: expected an array of unsigned integers, got the number \"1.0\"", tensor("[1.0]", "0", "1"), 1},
      {"shape: expected an array of unsigned integers, got the number \"18446744073709551616\"",
       tensor("[18446744073709551616]", "0", "0"), 0},
      {"shape has the dimension 9223372036854775808", tensor("[" + two_63 + "]", "0", "0"), 0},
      {"product of the shape exceeds 63 bits", tensor("[" + two_62 + ",4]", "0", "0"), 0},
      {"product of the shape exceeds 63 bits", tensor("[" + two_62 + ",4,0]", "0", "0"), 0},
      {"product of the shape exceeds 63 bits", tensor("[0," + two_62 + ",4]", "0", "0"), 0},
      {"product of the shape exceeds 63 bits", tensor("[4294967296,4294967296]", "0", "0"), 0},
      {"data_offsets span 0 bytes", header({entry("a", "F64", "[" + max_63 + "]", "0", "0")}), 0},
      {"data_offsets span 0 bytes", header({entry("a", "F64", "[2305843009213693952]", "0", "0")}), 0},
      {"more than 8 dimensions", tensor("[1,1,1,1,1,1,1,1,1]", "0", "1"), 1},
      {"data_offsets has 1 numbers", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1},
      {"data_offsets has 3 numbers", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1},
      {"data_offsets: expected an array of unsigned integers, got the number -1", tensor("[1]", "-1", "0"),
       1},
      {"end before they begin", tensor("[1]", "1", "0"), 1},
      {"end before they begin", tensor("[1]", "18446744073709551615", "0"), 1},
      {"begin at 1, expected 0", tensor("[1]", "1", "2"), 2},
      {"begin at 3, expected 1",
       header({entry("a", "U8", "[1]", "0", "1"), entry("b", "U8", "[1]", "3", "4")}), 4},
      {"begin at 1, inside the tensor before, expected 2",
       header({entry("a", "U8", "[2]", "0", "2"), entry("b", "U8", "[2]", "1", "3")}), 3},
      {"begin at 0, inside the tensor before, expected 2",
       header({entry("a", "U8", "[2]", "0", "2"), entry("b", "U8", "[2]", "0", "2")}), 2},
      {"the tensors end at byte 1 of the data, expected 2", tensor("[1]", "0", "1"), 2},
      {"the tensors end at byte 2 of the data, expected 1", tensor("[2]", "0", "2"), 1},
      {"the tensors end at byte 0 of the data, expected 5", "{}", 5},
      {"end at byte 18446744073709551615 of the data",
       header({entry("a", "F128", "[1]", "0", "18446744073709551615")}), 1},
      {"data_offsets span 2 bytes, expected 1 elements of U8", tensor("[1]", "0", "2"), 2},
      {"data_offsets span 4 bytes, expected 2 elements of F32", header({entry("a", "F32", "[2]", "0", "4")}),
       4},
      {"data_offsets span 2 bytes, expected 3 elements of F4", header({entry("a", "F4", "[3]", "0", "2")}),
       2},
      {"__metadata__: expected an object of strings, got a number", R"({"__metadata__":{"a":1}})", 0},
      {"__metadata__: expected an object of strings, got an object", R"({"__metadata__":{"a":{}}})", 0},
      {"__metadata__: expected an object of strings, got null", R"({"__metadata__":{"a":null}})", 0},
      {"__metadata__: expected an object of strings, got a string", R"({"__metadata__":"a"})", 0},
      {"__metadata__: appears twice", R"({"__metadata__":{},"__metadata__":{}})", 0},
      {"string of more than 16777216 bytes",
       header({entry(std::string((16u << 20) + 1, 'x'), "U8", "[1]", "0", "1")}), 1},
      {"dtype is \"xxx", header({entry("a", std::string(100, 'x'), "[1]", "0", "1")}), 1},
      {"not valid JSON", std::string(1000000, '{'), 0},
      {"got an array", R"({"a":{"dtype":"U8","shape":)" + std::string(1000000, '['), 0},
  };
  for (const Row& row : rows) {
    const std::string bytes = safetensors_bytes(row.text, row.bytes, row.length);
    EXPECT_TRUE(throws_with(row.part, [&] { parse_safetensors(bytes, "dir/f.safetensors"); }))
        << row.text.substr(0, 200);
    EXPECT_TRUE(throws_with("dir/f.safetensors: ", [&] { parse_safetensors(bytes, "dir/f.safetensors"); }));
  }
  for (size_t size = 0; size < 8; ++size)
    EXPECT_TRUE(throws_with("expected at least 8", [&] { parse_safetensors(std::string(size, '\0'), "f"); }));
}

TEST(Safetensors, EveryTruncationIsRejected) {
  const std::string whole =
      safetensors_bytes(header({R"("__metadata__":{"format":"pt"})", entry("b", "F16", "[2,3]", "4", "16"),
                                entry("a", "U8", "[4]", "0", "4")}),
                        16);
  EXPECT_NO_THROW(parse_safetensors(whole, "f"));
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(parse_safetensors(std::string_view(whole).substr(0, size), "f"), Error) << size;
  EXPECT_THROW(parse_safetensors(whole + "x", "f"), Error);
}

TEST(Safetensors, WrittenHeaderIsReadBack) {
  std::vector<StoredTensor> tensors = {
      {.name = "a \"quoted\"\n\xC3\xA9", .dtype = "I64", .shape = {2}, .bytes = 16},
      {.name = "b", .dtype = "F16", .shape = {}, .bytes = 2},
      {.name = "c", .dtype = "U8", .shape = {0, 3}, .bytes = 0},
  };
  for (int padding = 0; padding < 8; ++padding) {
    tensors[1].name += 'b';
    const std::string text = safetensors_header(tensors);
    EXPECT_EQ(text.size() % 8, 0u);
    const auto read = parse_safetensors(text + std::string(18, 'x'), "f");
    ASSERT_EQ(read.size(), 3u);
    EXPECT_EQ(read[0].name, tensors[0].name);
    EXPECT_EQ(read[0].offset, text.size());
    EXPECT_EQ(read[1].name, tensors[1].name);
    EXPECT_EQ(read[2].shape, tensors[2].shape);
  }
  EXPECT_NE(safetensors_header({}).find(R"("__metadata__":{"format":"pt"})"), std::string::npos);
}

TEST(ShardIndex, ReadsTheMap) {
  const ShardIndex index = parse_shard_index(
      R"({"metadata":{"total_size":12,"more":1},"weight_map":{"b":"y.safetensors","a":"x.safetensors"},"else":0})",
      "f");
  ASSERT_EQ(index.weight_map.size(), 2u);
  EXPECT_EQ(index.weight_map[0], std::pair(std::string("a"), std::string("x.safetensors")));
  EXPECT_EQ(index.total_size, 12u);
  EXPECT_FALSE(
      parse_shard_index(R"({"metadata":{"total_size":1.5e1},"weight_map":{"b":"y.safetensors"}})", "f")
          .total_size);
}

TEST(ShardIndex, RejectsNamesThatLeaveTheFolder) {
  for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", ".", "",
                           "a\\\\x.safetensors", "x.safetensors\\u0000.safetensors", "x.bin", "x"}) {
    const std::string text = std::string(R"({"weight_map":{"a":")") + name + "\"}}";
    EXPECT_TRUE(throws_with("i.json: weight_map: \"a\": expected a", [&] {
      parse_shard_index(text, "i.json");
    })) << name;
  }
  for (const auto& [text, part] :
       {std::pair("[]", "expected an object"),
        {"{}", "'weight_map': expected an object"},
        {R"({"weight_map":[]})", "expected an object, got an array"},
        {R"({"weight_map":{}})", "got none"},
        {R"({"weight_map":{"a":1}})", "expected a file name, got 1"},
        {R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})", "duplicate key"}})
    EXPECT_TRUE(throws_with(part, [&, text = text] { parse_shard_index(text, "i.json"); })) << text;
}

}  // namespace
}  // namespace ballast
