#include "tools/bench_model.h"

#include <fmt/format.h>

#include <random>

#include "engine/runtime/runner.h"
#include "tools/console.h"

namespace ballast {
namespace {

double lean_bytes(const nn::Linear& layer) {
  const double outputs = double(layer.out_features());
  const double vectors = (layer.bias ? outputs : 0) + (layer.position_bias ? outputs : 0);
  return layer.weight.bits_per_weight() / 8 * outputs * double(layer.in_features()) + 2 * vectors;
}

double multiply_adds(const nn::Linear& layer) {
  return double(layer.out_features()) * double(layer.in_features());
}

/// Counts exact zeros in the input of every layer whose name ends in `suffix`.
class ZeroCounter : public nn::Observer {
 public:
  ZeroCounter(Backend& backend, std::string suffix) : backend_(backend), suffix_(std::move(suffix)) {}
  void input(const nn::Linear& layer, const TensorView& x) override {
    if (!layer.name.ends_with(suffix_)) return;
    values_.resize(size_t(x.shape.elements()));
    backend_.copy_to_host(values_.data(), x.data, x.bytes());
    zeros_ += double(std::count(values_.begin(), values_.end(), 0.0f));
    total_ += double(values_.size());
  }
  double share() const { return total_ > 0 ? zeros_ / total_ : 0; }

 private:
  Backend& backend_;
  std::string suffix_;
  std::vector<float> values_;
  double zeros_ = 0, total_ = 0;
};

class Session {
 public:
  Session(Backend& backend, nn::Model& model, const ModelBenchOptions& options,
          const std::function<void(const std::string&)>& progress)
      : backend_(backend),
        model_(model),
        options_(options),
        progress_(progress),
        reader_(backend),
        cache_(backend, model.facts(), model.facts().layers, options.positions(), options.cache_type),
        runner_(backend, model, cache_) {
    std::mt19937 random(1);
    for (int64_t i = 0; i < options.positions(); ++i)
      ids_.push_back(int32_t(random() % uint64_t(model.facts().vocab)));
    CHECK(cache_.reserve(pages_, options.positions()));
    out_.cost = token_cost(model, options.cache_type);
    out_.cache_type = options.cache_type;
    out_.cache_bytes = cache_.bytes();
    out_.relu_zeros = count_zeros();
    out_.peak = peak_multiply_adds(backend);
    out_.memory_read = reader_.rate(kLargestSet);
  }

  ModelBench run() {
    for (const int64_t depth : options_.depth) {
      fill(depth);
      for (const int64_t tokens : options_.prompt) prompt(tokens, depth);
      for (const int64_t tokens : options_.generate) generate(tokens, depth);
    }
    for (BenchRow& row : out_.rows) row.peak = out_.peak;
    return std::move(out_);
  }

 private:
  static constexpr int64_t kFillTokens = 512;

  // One pass whose last row gets logits, as far as the host.
  void step(int64_t past, int64_t tokens) {
    batch_.clear();
    batch_.add(std::span(ids_).subspan(size_t(past), size_t(tokens)), past, pages_);
    batch_.want_logits();
    const TensorView logits = runner_.run(batch_);
    logits_.resize(size_t(logits.shape.elements()));
    backend_.copy_to_host(logits_.data(), logits.data, logits.bytes());
  }

  void fill(int64_t depth) {
    for (int64_t past = 0; past < depth; past += kFillTokens) {
      progress_(str("filling the cache, ", past, " of ", depth, " positions"));
      batch_.clear();
      batch_.add(std::span(ids_).subspan(size_t(past), size_t(std::min(kFillTokens, depth - past))), past,
                 pages_);
      runner_.run(batch_);
      check_interrupt();
    }
  }

  double count_zeros() {
    batch_.clear();
    batch_.add(std::span(ids_).first(std::min<size_t>(ids_.size(), 32)), 0, pages_);
    const nn::BatchRows rows = batch_.rows();
    ZeroCounter counter(backend_, ".fc2");
    Workspace workspace(backend_);
    const nn::ForwardContext context{backend_, workspace, rows, cache_.views(), &counter};
    const OutputView hidden = workspace.floats({rows.tokens(), model_.facts().hidden});
    model_.embed(context, hidden);
    for (int64_t layer = 0; layer < model_.facts().layers; ++layer)
      model_.block(layer).forward(context, hidden);
    return counter.share();
  }

  double read_rate() {
    const double rate = reader_.rate(std::min(kLargestSet, int64_t(out_.cost.weight_bytes)));
    out_.model_read = std::max(out_.model_read, rate);
    return rate;
  }

  void prompt(int64_t tokens, int64_t depth) {
    if (tokens == 0) return;
    BenchRow& row = add_row("pp", tokens, depth);
    row.bytes_per_token = out_.cost.weight_bytes / double(tokens);
    row.cache_bytes_per_token = out_.cost.cache_bytes * double(depth) / double(tokens);
    row.multiply_adds_per_token =
        out_.cost.block_multiply_adds + out_.cost.head_multiply_adds / double(tokens);
    step(depth, tokens);  // warms caches and grows buffers
    measure(row, [&] { step(depth, tokens); });
  }

  void generate(int64_t tokens, int64_t depth) {
    if (tokens == 0) return;
    BenchRow& row = add_row("tg", tokens, depth);
    row.bytes_per_token = out_.cost.weight_bytes;
    row.cache_bytes_per_token = out_.cost.cache_bytes * double(depth);
    row.multiply_adds_per_token = out_.cost.block_multiply_adds + out_.cost.head_multiply_adds;
    for (int64_t i = 0; i < std::min<int64_t>(tokens, 4); ++i) step(depth + i, 1);
    measure(row, [&] {
      for (int64_t i = 0; i < tokens; ++i) {
        step(depth + i, 1);
        check_interrupt();
      }
    });
  }

  BenchRow& add_row(const char* kind, int64_t tokens, int64_t depth) {
    out_.rows.push_back(
        {depth == 0 ? str(kind, tokens) : str(kind, tokens, " @ d", depth), tokens, depth, {}});
    return out_.rows.back();
  }

  template <class Body>
  void measure(BenchRow& row, Body&& body) {
    double before = read_rate(), rate = 0;
    int64_t again = options_.repeat;
    for (int64_t round = 0; round < options_.repeat; ++round) {
      progress_(str(row.test, ", run ", round + 1, " of ", options_.repeat));
      const auto timed = [&] {
        const double start = now();
        body();
        rate = double(row.tokens) / (now() - start);
      };
      row.read_rates.add(steady_rate(
          before, again, [&] { return read_rate(); }, timed));
      row.rates.add(rate);
    }
    row.unsteady = options_.repeat - again;
  }

  Backend& backend_;
  nn::Model& model_;
  const ModelBenchOptions& options_;
  const std::function<void(const std::string&)>& progress_;
  MemoryReader reader_;
  KvCache cache_;
  Runner runner_;
  PageTable pages_;
  Batch batch_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
  ModelBench out_;
};

int64_t largest(const std::vector<int64_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace

void ModelBenchOptions::check() const {
  for (const auto& [flag, values] :
       {std::pair("--prompt", &prompt), std::pair("--generate", &generate), std::pair("--depth", &depth)})
    for (const int64_t value : *values)
      if (value < 0 || value > int64_t(1) << 30)
        throw Error(str(flag, " is ", value, ", expected 0 or more"));
  if (largest(prompt) == 0 && largest(generate) == 0)
    throw Error("--prompt and --generate are both 0: nothing to measure");
}

int64_t ModelBenchOptions::positions() const {
  return largest(depth) + std::max(largest(prompt), largest(generate));
}

TokenCost token_cost(nn::Model& model, CacheType cache_type) {
  const nn::ModelFacts& facts = model.facts();
  TokenCost cost;
  cost.cache_bytes = double(KvCache::position_bytes(facts, cache_type));
  const auto count = [&](const nn::Linear& layer) {
    cost.weight_bytes += lean_bytes(layer);
    cost.block_multiply_adds += multiply_adds(layer);
  };
  for (int64_t layer = 0; layer < facts.layers; ++layer)
    for (const auto& branch : model.block(layer).branches) {
      for (const nn::Linear* linear : branch->expand()) count(*linear);
      count(branch->contract());
      cost.weight_bytes += 2.0 * 2.0 * double(facts.hidden);
    }
  for (const nn::Linear* linear : model.outer_linears()) count(*linear);
  cost.weight_bytes += lean_bytes(model.lm_head());
  cost.head_multiply_adds = multiply_adds(model.lm_head());
  return cost;
}

double BenchRow::share_of_read() const {
  Samples shares;
  for (size_t run = 0; run < rates.values.size(); ++run)
    shares.add(rates.values[run] * (bytes_per_token + cache_bytes_per_token) / read_rates.values[run]);
  return shares.median();
}

nlohmann::json BenchRow::runs() const {
  nlohmann::json array = nlohmann::json::array();
  for (size_t run = 0; run < rates.values.size(); ++run)
    array.push_back({{"tokens_per_second", rates.values[run]}, {"read_gb_s", read_rates.values[run] * 1e-9}});
  return array;
}

nlohmann::json BenchRow::json() const {
  return {{"test", test},
          {"tokens", tokens},
          {"depth", depth},
          {"tokens_per_second", rates.mean()},
          {"stddev", rates.deviation()},
          {"median", rates.median()},
          {"bytes_per_token", bytes_per_token},
          {"cache_bytes_per_token", cache_bytes_per_token},
          {"bandwidth_gb_s", bandwidth()},
          {"read_gb_s", read_rates.median() * 1e-9},
          {"unsteady_runs", unsteady},
          {"runs", runs()},
          {"share_of_read", share_of_read()},
          {"share_of_fma_peak", share_of_peak()}};
}

void ModelBench::add_to(nlohmann::json& object) const {
  object["memory_read_gb_s"] = memory_read * 1e-9;
  object["model_read_gb_s"] = model_read * 1e-9;
  object["fma_peak_gflop_s"] = 2e-9 * peak;
  object["weight_bytes"] = cost.weight_bytes;
  object["relu_zeros"] = relu_zeros;
  object["kv_cache_dtype"] = name_of(cache_type);
  object["kv_cache_bytes"] = cache_bytes;
  object["rows"] = nlohmann::json::array();
  for (const BenchRow& row : rows) object["rows"].push_back(row.json());
}

std::string ModelBench::markdown() const {
  std::string text = fmt::format(
      "Memory reads at {:.1f} GB/s, a set of the model's {:.0f} MB at {:.1f} GB/s; fp32 multiply-adds at "
      "{:.0f} GFLOP/s; "
      "{:.0f} % of fc2's input is zero; a cache of {:.1f} MB in {}.\n\n",
      memory_read * 1e-9, cost.weight_bytes * 1e-6, model_read * 1e-9, 2e-9 * peak, 100 * relu_zeros,
      double(cache_bytes) * 1e-6, name_of(cache_type));
  text +=
      "| test | tokens/s, median | mean ± deviation | MB per token | of the read rate | of the fp32 peak |\n"
      "|---|---:|---:|---:|---:|---:|\n";
  for (const BenchRow& row : rows)
    text += fmt::format("| {} | {:.2f} | {:.2f} ± {:.2f} | {:.3f} | {:.0f} % | {:.0f} % |\n", row.test,
                        row.rates.median(), row.rates.mean(), row.rates.deviation(),
                        (row.bytes_per_token + row.cache_bytes_per_token) * 1e-6, 100 * row.share_of_read(),
                        100 * row.share_of_peak());
  return text;
}

std::string ModelBench::csv() const {
  std::string text =
      "test,tokens,depth,tokens_per_second,stddev,median,bytes_per_token,bandwidth_gb_s,share_of_read,"
      "share_of_fma_peak\n";
  for (const BenchRow& row : rows)
    text += fmt::format("{},{},{},{},{},{},{},{},{},{}\n", row.test, row.tokens, row.depth, row.rates.mean(),
                        row.rates.deviation(), row.rates.median(), row.bytes_per_token, row.bandwidth(),
                        row.share_of_read(), row.share_of_peak());
  return text;
}

ModelBench bench_model(Backend& backend, nn::Model& model, const ModelBenchOptions& options,
                       const std::function<void(const std::string&)>& progress) {
  const int64_t limit = model.facts().max_positions;
  for (const auto& [flag, values] :
       {std::pair("--prompt", &options.prompt), std::pair("--generate", &options.generate)})
    for (const int64_t tokens : *values)
      if (largest(options.depth) + tokens > limit)
        throw Error(str(flag, " is ", tokens,
                        largest(options.depth) > 0 ? str(" behind --depth ", largest(options.depth)) : "",
                        ", expected at most the model's ", limit, " positions"));
  return Session(backend, model, options, progress).run();
}

}  // namespace ballast
