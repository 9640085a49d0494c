#include "tools/bench_quantizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "quantize/methods/gptq.h"
#include "tools/bench_data.h"
#include "tools/bench_dnnl.h"
#include "tools/console.h"

namespace ballast {
namespace {

class QuantizerBench {
 public:
  QuantizerBench(Backend& backend, const QuantizerBenchOptions& options)
      : backend_(backend),
        n_(options.size),
        dnnl_(options.threads),
        x_(normal_floats(std::max(kTokens, n_) * n_, 1)),
        weight_(normal_floats(n_ * n_, 2)),
        product_(weight_) {
    const double n = double(n_);
    rows_.resize(6);
    rows_[kSgemm] = {str("oneDNN SGEMM ", n_, "³"), 2e-9 * n * n * n, {}, {}};
    rows_[kMoment] = {
        str("second moment, ", kTokens, " tokens x ", n_), 1e-9 * double(kTokens) * n * n, {}, {}};
    rows_[kUpdate] = {str("rank update ", n_, "x", kRank, "x", n_), 2e-9 * n * n * double(kRank), {}, {}};
    rows_[kFactor] = {str("factorization ", n_, "², f64"), 2e-9 * n * n * n / 3, {}, {}};
    rows_[kWalk] = {str("column walk ", n_, "x", n_, ", 4 bits, groups of 128"), 1e-9 * n * n * n, {}, {}};
    rows_[kGptq] = {str("GPTQ ", n_, "x", n_, ": both"), 2e-9 * n * n * n, {}, {}};
  }

  void round();
  std::vector<QuantizerRow> rows() {
    if (!dnnl_) rows_.erase(rows_.begin() + kSgemm);
    return std::move(rows_);
  }

 private:
  enum Row { kSgemm, kMoment, kUpdate, kFactor, kWalk, kGptq };
  static constexpr int64_t kTokens = 2048, kRank = 128;

  template <class Body>
  double seconds(Body&& body) {
    check_interrupt();
    const double start = now();
    body();
    return now() - start;
  }
  void note(Row row, double taken) { rows_[row].rates.add(rows_[row].gigaflops / taken); }

  Backend& backend_;
  int64_t n_;
  OneDnn dnnl_;
  std::vector<float> x_, weight_, product_;
  std::vector<QuantizerRow> rows_;
};

void QuantizerBench::round() {
  if (dnnl_)
    note(kSgemm, seconds([&] { dnnl_.multiply(n_, n_, n_, weight_.data(), x_.data(), product_.data()); }));
  Statistics statistics(n_, 0, true);
  const TensorView x(x_.data(), DType::f32, {kTokens, n_});
  note(kMoment,
       seconds([&] { backend_.run(SecondMoment{.a = x, .b = x, .out = statistics.moment.data()}); }));
  statistics.count = kTokens;
  const int64_t rank = std::min(kRank, kTokens);
  note(kUpdate, seconds([&] {
         backend_.run(RankUpdate{.e = {x_.data(), DType::f32, {n_, rank}},
                                 .u = {x_.data(), DType::f32, {rank, n_}},
                                 .w = {product_.data(), DType::f32, {n_, n_}}});
       }));
  LayerInput input(backend_, activation_curvature(std::move(statistics), false), {}, "layer");
  const double factor = seconds([&] { input.factor(); });
  note(kFactor, factor);
  const LayerProblem problem{.name = "layer",
                             .out_features = n_,
                             .in_features = n_,
                             .weight = weight_,
                             .grid = {.bits = 4, .group_size = 128},
                             .input = &input};
  const double walk = seconds([&] { solve_gptq(backend_, problem); });
  note(kWalk, walk);
  note(kGptq, factor + walk);
  if (!dnnl_) return;
  for (QuantizerRow& row : rows_)
    row.sgemm_share.add(row.rates.values.back() / rows_[kSgemm].rates.values.back());
}

}  // namespace

nlohmann::json QuantizerRow::json() const {
  nlohmann::json object = {{"kernel", kernel},
                           {"gigaflops", gigaflops},
                           {"gflops_per_second", rates.median()},
                           {"rounds", rates.values}};
  if (!sgemm_share.empty()) object["share_of_sgemm"] = sgemm_share.median();
  return object;
}

std::vector<QuantizerRow> bench_quantizer(Backend& backend, const QuantizerBenchOptions& options,
                                          const std::function<void(const std::string&)>& progress) {
  if (options.size < 128 || options.size % 128 != 0 || options.size > 16384)
    throw Error(str("--kernel-size is ", options.size, ", expected a multiple of 128 up to 16384"));
  QuantizerBench bench(backend, options);
  for (int64_t round = 0; round < options.repeat; ++round) {
    progress(str("kernels, round ", round + 1, " of ", options.repeat));
    bench.round();
  }
  return bench.rows();
}

std::string quantizer_table(const std::vector<QuantizerRow>& rows) {
  std::string text =
      "| kernel | GFLOP | GFLOP/s, median (lowest, highest) | of oneDNN's SGEMM |\n|---|---:|---:|---:|\n";
  for (const QuantizerRow& row : rows)
    text +=
        fmt::format("| {} | {:.1f} | {:.1f} ({:.1f}, {:.1f}) | {} |\n", row.kernel, row.gigaflops,
                    row.rates.median(), row.rates.lowest(), row.rates.highest(),
                    row.sgemm_share.empty() ? "" : fmt::format("{:.0f} %", 100 * row.sgemm_share.median()));
  return text;
}

}  // namespace ballast
