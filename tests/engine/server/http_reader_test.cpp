// Requests read whole, byte by byte, and cut anywhere give the same.
#include "engine/server/http_reader.h"

#include <gtest/gtest.h>

#include "engine/server/api_keys.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast::server {
namespace {

using State = RequestReader::State;

/// What came of bytes that were fed in pieces of `size`.
struct Reading {
  State state;
  int status;
  std::string method, path, query, body;
  size_t taken;
  bool operator==(const Reading&) const = default;
};

Reading read_in_pieces(std::string_view bytes, size_t size) {
  RequestReader reader({.body = 1000});
  size_t taken = 0;
  while (taken < bytes.size() && reader.state() != State::done && reader.state() != State::failed)
    taken += reader.feed(bytes.substr(taken, size));
  if (reader.state() != State::done) return {reader.state(), reader.status(), "", "", "", "", 0};
  HttpRequest request = reader.take();
  return {State::done, 0, request.method, request.path, request.query, request.body, taken};
}

constexpr std::string_view kGet = "GET /a%20b?c=d#e HTTP/1.1\r\nHost: x\r\nX-Thing:  one two \r\n\r\n";
constexpr std::string_view kPost = "POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
constexpr std::string_view kChunks =
    "POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
    "chunked\r\n\r\n2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\nHost: y\r\n\r\n";

TEST(RequestReader, HowBytesAreCutDoesNotMatter) {
  for (const std::string_view request : {kGet, kPost, kChunks}) {
    const std::string bytes = std::string(request) + "GET /next HTTP/1.1\r\n";
    const Reading whole = read_in_pieces(bytes, bytes.size());
    EXPECT_EQ(whole.state, State::done);
    EXPECT_EQ(whole.taken, request.size()) << "the next request stays";
    for (size_t size = 1; size < request.size(); ++size)
      EXPECT_EQ(read_in_pieces(bytes, size), whole) << size;
  }
  EXPECT_EQ(read_in_pieces(kChunks, 7).body, "hello");
  EXPECT_EQ(read_in_pieces(kPost, 3).body, "hello");
}

TEST(RequestReader, OneEmptyLineMayComeFirst) {
  for (const size_t size : {1, 2, 100}) {
    EXPECT_EQ(read_in_pieces("\r\n" + std::string(kGet), size).state, State::done) << size;
    for (const char* before : {"\n", "\r\r\n", "\r\n\n", "\r\n\r\n"})
      EXPECT_EQ(read_in_pieces(before + std::string(kGet), size).status, 400) << size;
  }
}

TEST(RequestReader, PartsAreWhereTheyBelong) {
  RequestReader reader({});
  reader.feed(kGet);
  EXPECT_TRUE(reader.keep_alive());
  const HttpRequest request = reader.take();
  EXPECT_EQ(request.path, "/a%20b");
  EXPECT_EQ(request.query, "c=d");
  EXPECT_EQ(request.header("x-thing"), "one two");
  EXPECT_EQ(request.header("absent"), "");
  EXPECT_EQ(percent_decoded("/a%20b%2"), "/a b%2");
  EXPECT_EQ(percent_decoded("%zz%41"), "%zzA");
}

TEST(RequestReader, FailuresDoNotDependOnTheCutEither) {
  const std::pair<int, std::string> cases[] = {
      {400, "GET / HTTP/1.1\nHost: x\n\n"},
      {400, "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n"},
      {400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na"},
      {400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na"},
      {400, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na"},
      {413, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"},
      {413, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n"},
      {501, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"},
      {505, "GET / HTTP/2.0\r\nHost: x\r\n\r\n"},
  };
  for (const auto& [status, bytes] : cases)
    for (size_t size = 1; size <= bytes.size(); ++size)
      EXPECT_EQ(read_in_pieces(bytes, size).status, status) << bytes;
}

TEST(RequestReader, ChunksTogetherCountAgainstTheLimit) {
  std::string bytes = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 11; ++i) bytes += "64\r\n" + std::string(100, 'a') + "\r\n";
  EXPECT_EQ(read_in_pieces(bytes, 64).status, 413);
}

TEST(RequestReader, ContinueIsAskedForOnce) {
  RequestReader reader({});
  reader.feed("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_TRUE(reader.take_continue());
  EXPECT_FALSE(reader.take_continue());
  reader.feed("ab");
  EXPECT_EQ(reader.state(), State::done);
}

TEST(ApiKeys, AreFoundWholeOnly) {
  TempFolder folder;
  folder.write("keys", "# comment\n\n one \r\nlonger-key");
  const ApiKeys keys = ApiKeys::open(folder / "keys");
  EXPECT_TRUE(keys.required());
  EXPECT_EQ(keys.find("one"), 0);
  EXPECT_EQ(keys.find("longer-key"), 1);
  for (const char* wrong : {"", "on", "ones", "oneone", "onelonger-key", "# comment"})
    EXPECT_EQ(keys.find(wrong), -1);
  folder.write("none", "# only this\n");
  EXPECT_TRUE(throws_with("no keys", [&] { ApiKeys::open(folder / "none"); }));
  EXPECT_FALSE(ApiKeys().required());
}

}  // namespace
}  // namespace ballast::server
