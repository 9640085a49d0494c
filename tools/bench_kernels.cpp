#include "tools/bench_kernels.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "quantize/methods/gptq.h"
#include "tools/console.h"

namespace ballast {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.empty() ? 0 : values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// oneDNN, opened when asked for: linked in it would cost every command its start.
class OneDnn {
 public:
  explicit OneDnn(int threads) {
    void* library = nullptr;
    for (const char* name : {"libdnnl.so.3", "libdnnl.so.2", "libdnnl.so"})
      if (!library) library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (!library) return;
    sgemm_ = reinterpret_cast<Sgemm*>(dlsym(library, "dnnl_sgemm"));
    if (auto* set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
        set && threads > 0)
      set(threads);
  }
  explicit operator bool() const { return sgemm_ != nullptr; }
  /// c = a·b, all [size, size]
  void multiply(int64_t size, const float* a, const float* b, float* c) const {
    const int status = sgemm_('N', 'N', size, size, size, 1, a, size, b, size, 0, c, size);
    if (status != 0) throw RuntimeFailure(str("dnnl_sgemm failed with status ", status));
  }

 private:
  using Sgemm = int(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                    int64_t, float, float*, int64_t);
  Sgemm* sgemm_ = nullptr;
};

std::vector<float> normal_floats(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

class KernelBench {
 public:
  KernelBench(Backend& backend, const KernelBenchOptions& options)
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
  std::vector<KernelRow> rows() {
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
  void note(Row row, double taken) { rows_[row].rates.push_back(rows_[row].gigaflops / taken); }

  Backend& backend_;
  int64_t n_;
  OneDnn dnnl_;
  std::vector<float> x_, weight_, product_;
  std::vector<KernelRow> rows_;
};

void KernelBench::round() {
  if (dnnl_) note(kSgemm, seconds([&] { dnnl_.multiply(n_, weight_.data(), x_.data(), product_.data()); }));
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
  for (KernelRow& row : rows_) row.sgemm_share.push_back(row.rates.back() / rows_[kSgemm].rates.back());
}

}  // namespace

nlohmann::json KernelRow::json() const {
  nlohmann::json object = {
      {"kernel", kernel}, {"gigaflops", gigaflops}, {"gflops_per_second", median(rates)}, {"rounds", rates}};
  if (!sgemm_share.empty()) object["share_of_sgemm"] = median(sgemm_share);
  return object;
}

std::vector<KernelRow> bench_kernels(Backend& backend, const KernelBenchOptions& options,
                                     const std::function<void(const std::string&)>& progress) {
  if (options.size < 128 || options.size % 128 != 0 || options.size > 16384)
    throw Error(str("--kernel-size is ", options.size, ", expected a multiple of 128 up to 16384"));
  KernelBench bench(backend, options);
  for (int64_t round = 0; round < options.repeat; ++round) {
    progress(str("kernels, round ", round + 1, " of ", options.repeat));
    bench.round();
  }
  return bench.rows();
}

std::string kernel_table(const std::vector<KernelRow>& rows) {
  std::string text =
      "| kernel | GFLOP | GFLOP/s, median (lowest, highest) | of oneDNN's SGEMM |\n|---|---:|---:|---:|\n";
  for (const KernelRow& row : rows)
    text +=
        fmt::format("| {} | {:.1f} | {:.1f} ({:.1f}, {:.1f}) | {} |\n", row.kernel, row.gigaflops,
                    median(row.rates), *std::min_element(row.rates.begin(), row.rates.end()),
                    *std::max_element(row.rates.begin(), row.rates.end()),
                    row.sgemm_share.empty() ? "" : fmt::format("{:.0f} %", 100 * median(row.sgemm_share)));
  return text;
}

}  // namespace ballast
