// The transport by itself: how many connections it holds, and of whom.
#include "engine/server/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <memory>
#include <string>
#include <vector>

namespace ballast::server {
namespace {

/// A connection from one of this machine's own addresses.
class Client {
 public:
  Client(const char* from, int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    const sockaddr_in source = address(from, 0), target = address("127.0.0.1", port);
    connected_ = ::bind(socket_, reinterpret_cast<const sockaddr*>(&source), sizeof source) == 0 &&
                 ::connect(socket_, reinterpret_cast<const sockaddr*>(&target), sizeof target) == 0;
  }
  ~Client() { ::close(socket_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  /// True if a request is answered.
  bool answered() const { return ask() && read(512) > 0; }
  bool ask() const {
    constexpr std::string_view kRequest = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    return connected_ && ::send(socket_, kRequest.data(), kRequest.size(), MSG_NOSIGNAL) > 0;
  }
  /// Bytes read, `most` at once; 0 or less: there are no more.
  int64_t read(size_t most) const {
    std::vector<char> buffer(most);
    return ::recv(socket_, buffer.data(), most, 0);
  }

 private:
  static sockaddr_in address(const char* host, int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(uint16_t(port));
    ::inet_pton(AF_INET, host, &address.sin_addr);
    return address;
  }

  int socket_;
  bool connected_;
};

class HttpServerTest : public testing::Test {
 protected:
  void start(HttpOptions options) {
    options.port = 0;
    server = std::make_unique<HttpServer>(
        options, [this](const HttpRequest& request, const std::shared_ptr<Reply>& reply) {
          reply->send({.body = body.empty() ? request.peer : body});
        });
    server->start([](int) {}, [] {});
  }
  HttpCounters counters() {
    std::promise<HttpCounters> counters;
    server->post([&] { counters.set_value(server->counters()); });
    return counters.get_future().get();
  }
  std::unique_ptr<Client> client(const char* from) { return std::make_unique<Client>(from, server->port()); }

  std::string body;  ///< of every answer; empty: the client's address
  std::unique_ptr<HttpServer> server;
};

TEST_F(HttpServerTest, OneAddressCannotTakeAllConnections) {
  start({.max_per_address = 3, .exempt_loopback = false});
  std::vector<std::unique_ptr<Client>> greedy;
  for (int i = 0; i < 3; ++i) {
    greedy.push_back(client("127.0.0.5"));
    EXPECT_TRUE(greedy.back()->answered());
  }
  EXPECT_FALSE(client("127.0.0.5")->answered());
  EXPECT_EQ(counters().dropped, 1);
  EXPECT_EQ(counters().connections, 3);
  EXPECT_TRUE(client("127.0.0.6")->answered()) << "another address has room of its own";
  for (const auto& one : greedy) EXPECT_TRUE(one->answered()) << "those that are in stay in";
  greedy.pop_back();
  while (counters().connections > 2) usleep(1000);
  EXPECT_TRUE(client("127.0.0.5")->answered()) << "room that was given back can be had again";
}

TEST_F(HttpServerTest, ThisMachineIsExempt) {
  start({.max_per_address = 2});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(client("127.0.0.1"));
    EXPECT_TRUE(clients.back()->answered());
  }
  EXPECT_EQ(counters().dropped, 0);
}

TEST_F(HttpServerTest, WhoReadsTooSlowlyAllTheTimeIsDropped) {
  body.assign(20 << 20, 'x');
  for (const bool demanding : {false, true}) {
    start({.stall_seconds = 0.5, .min_output_rate = demanding ? 1e12 : 1.0});
    const auto slow = client("127.0.0.1");
    ASSERT_TRUE(slow->ask());
    // Something is taken within every half second, so nobody stalls.
    int64_t rounds = 0;
    for (; rounds < 200 && counters().dropped == 0; ++rounds) {
      EXPECT_GT(slow->read(64 << 10), 0);
      usleep(10'000);
    }
    EXPECT_EQ(rounds < 200, demanding);
  }
}

TEST_F(HttpServerTest, ConnectionsBeyondTheLimitWait) {
  start({.max_connections = 2});
  auto first = client("127.0.0.1"), second = client("127.0.0.1"), third = client("127.0.0.1");
  EXPECT_TRUE(first->answered());
  EXPECT_TRUE(second->answered());
  EXPECT_EQ(counters().connections, 2);
  first.reset();
  EXPECT_TRUE(third->answered());
}

}  // namespace
}  // namespace ballast::server
