// The rate of the quantizer's heavy steps, beside what oneDNN's SGEMM reaches in the same process.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/backend.h"
#include "tools/bench_samples.h"

namespace ballast {

struct QuantizerBenchOptions {
  int64_t size = 4096;  ///< width and height of the layer
  int64_t repeat = 5;   ///< rounds; each runs every kernel once, so that a disturbance meets all alike
  int threads = 0;      ///< of oneDNN; 0: its default
};

struct QuantizerRow {
  std::string kernel;
  double gigaflops = 0;  ///< counted operations of one run
  Samples rates;         ///< GFLOP/s of each round
  Samples sgemm_share;   ///< of oneDNN's rate in the same round; empty without oneDNN

  nlohmann::json json() const;
};

/// GPTQ counts d³ + d_out·d² operations for factorization and column walk together. oneDNN is looked up at run
/// time (libdnnl); without it there is no row for it.
std::vector<QuantizerRow> bench_quantizer(Backend& backend, const QuantizerBenchOptions& options,
                                          const std::function<void(const std::string&)>& progress);
/// A Markdown table of medians.
std::string quantizer_table(const std::vector<QuantizerRow>& rows);

}  // namespace ballast
