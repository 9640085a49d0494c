// The rate of linear layers, shape by shape, beside what the machine can do in the same process.
#pragma once

#include <functional>

#include "tools/bench_machine.h"

namespace ballast {

struct LinearBenchOptions {
  std::vector<std::string> shapes = {"1.3b"};  ///< names that random_shapes() lists
  std::vector<int> bits = {16, 8, 4, 3, 2};
  std::vector<int64_t> groups = {128};  ///< 0: the whole row
  std::vector<int64_t> tokens = {1, 2, 4, 8, 16, 64, 512};
  int64_t repeat = 5;
  int threads = 0;  ///< of oneDNN; 0: its default

  void check() const;
};

struct LinearRow {
  int64_t out_features = 0, in_features = 0;
  int bits = 0;
  int64_t group_size = 0, tokens = 0;
  double weight_bytes = 0;          ///< without padding
  Samples calls;                    ///< calls per second of every round
  double read_rate = 0, peak = 0;   ///< of the machine beside it: bytes and multiply-adds per second
  double sgemm = 0, byte_gemm = 0;  ///< oneDNN's multiply-adds per second for this shape; 0: not measured

  double bandwidth() const { return calls.median() * weight_bytes; }
  double multiply_adds() const {
    return calls.median() * double(out_features) * double(in_features) * double(tokens);
  }
  nlohmann::json json() const;
};

/// Weights are random codes, laid out by the backend once and copied until they fill kRotatedBytes: every call
/// reads another copy, so that none is in a cache. Activations are random too, ReLU's zeros left out. oneDNN is
/// measured from kLibraryTokens tokens on, with a weight that stays in the caches.
std::vector<LinearRow> bench_linear(Backend& backend, const LinearBenchOptions& options,
                                    const std::function<void(const std::string&)>& progress);
std::string linear_table(const std::vector<LinearRow>& rows);

inline constexpr int64_t kRotatedBytes = int64_t(256) << 20, kLibraryTokens = 16;

}  // namespace ballast
