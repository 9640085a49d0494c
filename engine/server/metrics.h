// Counters and histograms in Prometheus' text format (0.0.4). Kept on the I/O thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/server/engine_loop.h"
#include "engine/server/http_server.h"

namespace ballast::server {

class Histogram {
 public:
  /// Upper bounds of the buckets, rising; one more without bound comes after them.
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void add(double value);
  int64_t count() const { return count_; }
  double sum() const { return sum_; }
  std::string text(const std::string& name, const std::string& help) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  double sum_ = 0;
};

struct Metrics {
  Metrics();

  Histogram first_token, inter_token, whole, queue;          ///< seconds
  std::array<int64_t, 5> finished{};                         ///< choices, by FinishReason
  std::map<std::pair<std::string, int>, int64_t> responses;  ///< by route and status
  int64_t rejected = 0;                                      ///< queue full

  /// `images`: classified so far.
  std::string text(const EngineStatus& engine, int64_t images, const HttpCounters& http,
                   const std::string& version) const;
};

}  // namespace ballast::server
