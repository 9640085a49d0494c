#include "tools/bench_linear.h"

#include <fmt/format.h>

#include <map>
#include <random>
#include <set>
#include <tuple>

#include "engine/core/tensor.h"
#include "kernels/encodings/affine.h"
#include "tools/bench_data.h"
#include "tools/bench_dnnl.h"
#include "tools/console.h"
#include "tools/random_model.h"

namespace ballast {
namespace {

AffineMatrix random_matrix(int64_t rows, int64_t columns, int bits, int64_t group_size) {
  AffineMatrix matrix{.bits = bits, .out_features = rows, .in_features = columns, .group_size = group_size};
  std::mt19937_64 random(uint64_t(rows * columns + bits));
  matrix.codes.resize(size_t(rows * columns));
  uint64_t word = 0;
  for (size_t i = 0; i < matrix.codes.size(); ++i, word >>= 8) {
    if (i % 8 == 0) word = random();
    matrix.codes[i] = uint8_t(word & uint64_t(matrix.max_code()));
  }
  matrix.scales.resize(size_t(rows * matrix.groups()));
  for (uint16_t& scale : matrix.scales) scale = f32_to_f16(0.001f * (1 + float(random() % 1024) / 1024));
  matrix.zero_points.assign(matrix.scales.size(), uint8_t((matrix.max_code() + 1) / 2));
  return matrix;
}

/// Copies of one packed weight, one behind the other in use.
template <class View>
class Rotation {
 public:
  template <class Source>
  Rotation(Backend& backend, View view, const Source& source) : view_(view) {
    const int64_t bytes = backend.packed_bytes(view);
    std::vector<char> host(static_cast<size_t>(bytes));
    for (int64_t held = 0; held == 0 || (held < kRotatedBytes && size() < kMostCopies); held += bytes) {
      copies_.emplace_back(backend, DType::u8, Shape{bytes});
      void* const blob = copies_.back().view().template as<void>();
      if (copies_.size() == 1) {
        backend.pack(source, view, blob);
        backend.copy_to_host(host.data(), blob, bytes);
      } else {
        backend.copy_to_device(blob, host.data(), bytes);
      }
    }
  }
  View next() {
    view_.data = copies_[at_++ % copies_.size()].view();
    return view_;
  }
  int64_t size() const { return int64_t(copies_.size()); }

 private:
  static constexpr int64_t kMostCopies =
      4096;  // of the smallest layers, which are no measure of memory anyway

  View view_;
  std::vector<Tensor> copies_;
  size_t at_ = 0;
};

class LinearBench {
 public:
  LinearBench(Backend& backend, const LinearBenchOptions& options,
              const std::function<void(const std::string&)>& progress)
      : backend_(backend), options_(options), progress_(progress), reader_(backend), dnnl_(options.threads) {
    peak_ = peak_multiply_adds(backend);
  }

  void layer(int64_t rows, int64_t columns, int bits, int64_t group_size) {
    if (bits == 16) {
      const AffineMatrix source = random_matrix(rows, columns, 8, columns);
      std::vector<uint16_t> halves(source.codes.size());
      for (size_t i = 0; i < halves.size(); ++i)
        halves[i] = f32_to_f16(0.001f * float(int(source.codes[i]) - 128));
      const DenseView facts{DType::f16, rows, columns, {}};
      Rotation weights(backend_, facts, TensorView(halves.data(), DType::f16, {rows, columns}));
      return measure(weights, facts, 16, 0);
    }
    const AffineMatrix source = random_matrix(rows, columns, bits, group_size);
    Rotation weights(backend_, source.facts(), source);
    measure(weights, source.facts(), bits, group_size);
  }

  std::vector<LinearRow> rows() { return std::move(rows_); }

 private:
  template <class View>
  void measure(Rotation<View>& weights, const View& facts, int bits, int64_t group_size) {
    const double bytes = facts.bits_per_weight() / 8 * double(facts.out_features) * double(facts.in_features);
    for (const int64_t tokens : options_.tokens) {
      LinearRow row{facts.out_features, facts.in_features, bits, group_size, tokens, bytes, {}};
      row.peak = peak_;
      progress_(str(row.out_features, "x", row.in_features, ", ", bits, " bits, ", tokens, " tokens"));
      const std::vector<float> x = normal_floats(tokens * row.in_features, 3);
      Tensor input = Tensor::from_floats(backend_, x, {tokens, row.in_features});
      Tensor output(backend_, DType::f32, {tokens, row.out_features});
      const auto call = [&] {
        backend_.run(Linear<View>{.x = input.view(), .weight = weights.next(), .y = output.view()});
      };
      call();
      const auto read = [&] { return reader_.rate(kLargestSet); };
      double before = read();
      int64_t again = options_.repeat;
      row.read_rate = steady_rate(before, again, read, [&] {
        row.calls = {};
        for (int64_t round = 0; round < options_.repeat; ++round) row.calls.add(rate_of(call));
      });
      library_rates(row, x);
      rows_.push_back(std::move(row));
    }
  }

  // Calls per second over a thirtieth of a second, at least three calls.
  template <class Call>
  static double rate_of(const Call& call) {
    check_interrupt();
    const double start = now();
    int64_t calls = 0;
    for (double taken = 0; calls < 3 || taken < 0.033; taken = now() - start) {
      call();
      ++calls;
    }
    return double(calls) / (now() - start);
  }

  // The best of `repeat` rounds: the figure that ours is compared with.
  void library_rates(LinearRow& row, const std::vector<float>& x) {
    if (!dnnl_ || row.tokens < kLibraryTokens) return;
    auto& [sgemm, bytes] = library_[{row.out_features, row.in_features, row.tokens}];
    if (sgemm == 0) {
      const int64_t m = row.tokens, n = row.out_features, k = row.in_features;
      const double work = double(m) * double(n) * double(k);
      const std::vector<float> w = normal_floats(n * k, 4);
      std::vector<float> y(size_t(m * n));
      const std::vector<uint8_t> x_bytes(size_t(m * k), 3);
      const std::vector<int8_t> w_bytes(size_t(n * k), -5);
      std::vector<int32_t> y_words(size_t(m * n));
      for (int64_t round = 0; round <= options_.repeat; ++round) {  // the first one makes the library's code
        const double floats = rate_of([&] { dnnl_.multiply(m, n, k, x.data(), w.data(), y.data(), true); });
        const double integers =
            rate_of([&] { dnnl_.multiply(m, n, k, x_bytes.data(), w_bytes.data(), y_words.data()); });
        if (round == 0) continue;
        sgemm = std::max(sgemm, floats * work);
        bytes = std::max(bytes, integers * work);
      }
    }
    row.sgemm = sgemm;
    row.byte_gemm = bytes;
  }

  Backend& backend_;
  const LinearBenchOptions& options_;
  const std::function<void(const std::string&)>& progress_;
  MemoryReader reader_;
  OneDnn dnnl_;
  double peak_ = 0;  // multiply-adds per second
  std::map<std::tuple<int64_t, int64_t, int64_t>, std::pair<double, double>> library_;
  std::vector<LinearRow> rows_;
};

std::string percent(double part, double whole) {
  return part > 0 && whole > 0 ? fmt::format("{:.0f} %", 100 * part / whole) : "";
}

}  // namespace

void LinearBenchOptions::check() const {
  for (const int width : bits)
    if (width != 16 && width != 2 && width != 3 && width != 4 && width != 8)
      throw Error(str("--kernel-bits is ", width, ", expected 16, 8, 4, 3 or 2"));
  for (const int64_t count : tokens)
    if (count < 1 || count > 65536) throw Error(str("--kernel-tokens is ", count, ", expected 1 to 65536"));
  for (const std::string& shape : shapes)
    for (const auto& [rows, columns] : linear_shapes(shape))
      for (const int64_t group : groups)
        if (group < 0 || (group > 0 && columns % group != 0))
          throw Error(str("--kernel-groups is ", group, ", expected 0 or a divisor of ", columns));
}

nlohmann::json LinearRow::json() const {
  nlohmann::json object = {{"kernel", str("linear ", out_features, "x", in_features)},
                           {"out_features", out_features},
                           {"in_features", in_features},
                           {"bits", bits},
                           {"group_size", group_size},
                           {"tokens", tokens},
                           {"microseconds", 1e6 / calls.median()},
                           {"weight_bytes", weight_bytes},
                           {"bandwidth_gb_s", bandwidth() * 1e-9},
                           {"read_gb_s", read_rate * 1e-9},
                           {"share_of_read", bandwidth() / read_rate},
                           {"gmac_per_second", multiply_adds() * 1e-9},
                           {"share_of_fma_peak", multiply_adds() / peak}};
  if (sgemm > 0) object["share_of_sgemm"] = multiply_adds() / sgemm;
  if (byte_gemm > 0) object["share_of_u8s8_gemm"] = multiply_adds() / byte_gemm;
  return object;
}

std::vector<LinearRow> bench_linear(Backend& backend, const LinearBenchOptions& options,
                                    const std::function<void(const std::string&)>& progress) {
  options.check();
  LinearBench bench(backend, options, progress);
  std::set<std::pair<int64_t, int64_t>> seen;
  for (const std::string& shape : options.shapes)
    for (const auto& [rows, columns] : linear_shapes(shape)) {
      if (!seen.insert({rows, columns}).second) continue;
      for (const int bits : options.bits)
        for (const int64_t group : bits == 16 ? std::vector<int64_t>{0} : options.groups)
          bench.layer(rows, columns, bits, group ? group : columns);
    }
  return bench.rows();
}

std::string linear_table(const std::vector<LinearRow>& rows) {
  std::string text;
  if (!rows.empty()) {
    Samples reads;
    for (const LinearRow& row : rows) reads.add(row.read_rate * 1e-9);
    text = fmt::format("Memory reads at {:.1f} to {:.1f} GB/s; fp32 multiply-adds at {:.1f} G/s.\n\n",
                       reads.lowest(), reads.highest(), rows[0].peak * 1e-9);
  }
  text +=
      "| layer | bits | group | tokens | µs | GB/s | of the read rate | GMAC/s | of the fp32 peak | of SGEMM "
      "| of u8s8 |\n"
      "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
  for (const LinearRow& row : rows)
    text +=
        fmt::format("| {}x{} | {} | {} | {} | {:.1f} | {:.2f} | {} | {:.2f} | {} | {} | {} |\n",
                    row.out_features, row.in_features, row.bits, row.group_size, row.tokens,
                    1e6 / row.calls.median(), row.bandwidth() * 1e-9, percent(row.bandwidth(), row.read_rate),
                    row.multiply_adds() * 1e-9, percent(row.multiply_adds(), row.peak),
                    percent(row.multiply_adds(), row.sgemm), percent(row.multiply_adds(), row.byte_gemm));
  return text;
}

}  // namespace ballast
