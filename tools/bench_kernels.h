// The rate of the quantizer's heavy steps, beside what oneDNN's SGEMM reaches in the same process.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace ballast {

struct KernelBenchOptions {
  int64_t size = 4096;  ///< width and height of the layer
  int64_t repeat = 5;   ///< rounds; each runs every kernel once, so that a disturbance meets all alike
  int threads = 0;      ///< of oneDNN; 0: its default
};

struct KernelRow {
  std::string kernel;
  double gigaflops = 0;             ///< counted operations of one run
  std::vector<double> rates;        ///< GFLOP/s of each round
  std::vector<double> sgemm_share;  ///< of oneDNN's rate in the same round; empty without oneDNN

  nlohmann::json json() const;
};

/// GPTQ counts d³ + d_out·d² operations for factorization and column walk together. oneDNN is looked up at run
/// time (libdnnl); without it there is no row for it.
std::vector<KernelRow> bench_kernels(Backend& backend, const KernelBenchOptions& options,
                                     const std::function<void(const std::string&)>& progress);
/// A Markdown table of medians.
std::string kernel_table(const std::vector<KernelRow>& rows);

}  // namespace ballast
