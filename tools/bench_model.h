// Tokens per second of a model: prompts in one pass and tokens one by one, behind any number of earlier ones.
#pragma once

#include <functional>

#include "engine/runtime/kv_cache.h"
#include "tools/bench_machine.h"

namespace ballast {

struct ModelBenchOptions {
  std::vector<int64_t> prompt = {512}, generate = {64}, depth = {0};
  int64_t repeat = 5;
  CacheType cache_type = CacheType::f32;

  /// Error when nothing is left to measure.
  void check() const;
  /// Positions that the longest test reaches.
  int64_t positions() const;
};

/// What one token costs at least. The weights count as a file without padding stores them: quantized ones with a
/// 16-bit scale and a zero point per group, biases and norms in 16 bits. Keys and values count as the cache has them.
struct TokenCost {
  double weight_bytes = 0;
  double block_multiply_adds = 0;  ///< of the linear layers, without the head
  double head_multiply_adds = 0;
  double cache_bytes = 0;  ///< keys and values of one earlier position
};
TokenCost token_cost(nn::Model& model, CacheType cache_type);

struct BenchRow {
  std::string test;  ///< "pp512", "tg64 @ d1024"
  int64_t tokens = 0, depth = 0;
  Samples rates;       ///< tokens per second of every run
  Samples read_rates;  ///< bytes per second of memory reads beside every run: the better of before and after
  int64_t unsteady =
      0;  ///< runs left out, and made again, because reads before and after them differed by much
  double bytes_per_token = 0, cache_bytes_per_token = 0;
  double multiply_adds_per_token = 0;
  double peak = 0;  ///< multiply-adds per second of the machine

  double bandwidth() const { return rates.mean() * bytes_per_token * 1e-9; }
  /// Of the rate at which the weights (and the keys and values of the depth) could be read beside it: the median of
  /// the runs.
  double share_of_read() const;
  double share_of_peak() const { return rates.median() * multiply_adds_per_token / peak; }
  nlohmann::json runs() const;
  nlohmann::json json() const;
};

struct ModelBench {
  std::vector<BenchRow> rows;
  double memory_read = 0, model_read = 0,
         peak = 0;  ///< highest per second; model_read: a set of the model's size
  TokenCost cost;
  double relu_zeros = 0;  ///< share of exact zeros in the input of fc2
  CacheType cache_type = CacheType::f32;
  int64_t cache_bytes = 0;  ///< of the cache that the tests ran in

  void add_to(nlohmann::json& object) const;
  std::string markdown() const;
  std::string csv() const;
};

/// All blocks must be loaded. Error when a test needs more positions than the model has.
ModelBench bench_model(Backend& backend, nn::Model& model, const ModelBenchOptions& options,
                       const std::function<void(const std::string&)>& progress);

}  // namespace ballast
