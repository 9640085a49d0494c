// How fast the CUDA backend is: linear layers of OPT's shapes against cuBLASLt in f16, decoding and prompts of whole models with
// random weights, and what --deterministic costs those. Medians over graph replays between events, weights rotated beyond the
// cache, random data, outputs poisoned and checked; the clocks are left alone. Linear layers find their input rounded, as cuBLASLt
// does, up to 128 tokens.
//
// usage: device_bench COMMIT DATE OUTPUT.json [--short]      a table on stdout; --short: tiny shapes, for the emulator
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>

#include "engine/nn/attention.h"
#include "engine/nn/mlp.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/device/report.h"
#include "tests/support/random.h"

namespace ballast {
namespace {

using test::Random;

struct OptShape {
  const char* name;
  int64_t layers, heads, hidden, vocab;
};
// OPT (arXiv 2205.01068, table 1).
constexpr OptShape kShapes[] = {{"125m", 12, 12, 768, 50272},  {"350m", 24, 16, 1024, 50272},
                                {"1.3b", 24, 32, 2048, 50272}, {"2.7b", 32, 32, 2560, 50272},
                                {"6.7b", 32, 32, 4096, 50272}, {"13b", 40, 40, 5120, 50272},
                                {"30b", 48, 56, 7168, 50272},  {"66b", 64, 72, 9216, 50272}};
constexpr OptShape kTiny[] = {{"tiny", 2, 2, 128, 320}};

struct Plan {
  std::span<const OptShape> shapes = kShapes;
  std::vector<int64_t> tokens{1, 2, 4, 8, 16, 32, 64, 128, 256};
  int64_t rotated_bytes = int64_t(256) << 20;
  int64_t copied_bytes = int64_t(2) << 30;
  int repeats = 30;
  int64_t prompt = 512;
  /// Where codes are multiplied as they are, and where they are decoded first: both are measured.
  std::vector<int64_t> crossing{64, 128, 256, 384, 512, 768, 1024};
  int64_t past = 2047;  ///< positions behind which one token attends
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Timing {
  double median, lowest, highest;
};
// A GPU that waited for the host has left its clocks; a graph's first kernel waits for the host to hand over the graph, some 10
// µs that would count when it has few and short calls.
constexpr double kWarmSeconds = 0.03, kLeastSeconds = 0.001;

/// Seconds of one call of `body(i)`: a graph of `calls` calls, replayed. The bodies take turns among what they rotate.
Timing time_calls(cuda::Machine& machine, int64_t calls, int repeats,
                  const std::function<void(int64_t)>& body) {
  const auto all = [&] {
    for (int64_t i = 0; i < calls; ++i) body(i);
  };
  all();  // allocates what is needed
  machine.wait();
  const cuda::Recording recording = machine.record(all);
  double warm = 0, once = 0;
  for (int i = 0; i < 3 || warm < kWarmSeconds; ++i)
    warm += once = std::max(1e-6, machine.seconds([&] { machine.replay(recording); }));
  const int at_once = std::max(1, int(std::ceil(kLeastSeconds / once)));
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i)
    seconds.push_back(machine.seconds([&] {
      for (int again = 0; again < at_once; ++again) machine.replay(recording);
    }) / double(calls * at_once));
  return {median(seconds), *std::min_element(seconds.begin(), seconds.end()),
          *std::max_element(seconds.begin(), seconds.end())};
}

/// Codes, scales and zero points drawn at random by all threads of the host.
AffineMatrix random_matrix(Backend& backend, int bits, int64_t out, int64_t in, int64_t group_size,
                           uint64_t seed) {
  AffineMatrix matrix{.bits = bits, .out_features = out, .in_features = in, .group_size = group_size};
  matrix.codes.resize(size_t(out * in));
  matrix.scales.resize(size_t(out * matrix.groups()));
  matrix.zero_points.assign(matrix.scales.size(), uint8_t(1 << (bits - 1)));
  const float unit =
      1.0f / (std::sqrt(float(in) / 12) * float(1 << bits));  // keeps outputs near the size of inputs
  backend.parallel_for(out, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      Random random(seed * 1000003 + uint64_t(row));
      uint8_t* codes = matrix.codes.data() + row * in;
      for (int64_t i = 0; i < in; i += 8) {
        const uint64_t word = random.bits();
        for (int64_t j = i; j < std::min(i + 8, in); ++j)
          codes[j] = uint8_t(word >> 8 * (j - i)) & uint8_t(matrix.max_code());
      }
      for (int64_t group = 0; group < matrix.groups(); ++group)
        matrix.scales[size_t(row * matrix.groups() + group)] =
            f32_to_f16(unit * random.uniform(0.75f, 1.25f));
    }
  });
  return matrix;
}

class Bench {
 public:
  /// `steady`: the same device with --deterministic. `about`: the file's head.
  Bench(CudaBackend& backend, CudaBackend& steady, const Plan& plan, nlohmann::json about, std::string output)
      : backend_(backend),
        steady_(steady),
        machine_(backend.machine()),
        plan_(plan),
        file_(std::move(about)),
        output_(std::move(output)) {}

  void run();

 private:
  void copy_bandwidth();
  void layer(const char* model, int64_t out, int64_t in, int bits);
  void crossing(const char* model, const std::vector<Weight>& weights, const AffineMatrix& matrix);
  void halves(const char* model, int64_t out, int64_t in);
  void verify(const AffineMatrix& matrix, const std::vector<float>& x, const Tensor& y, int64_t tokens,
              const std::string& what);
  void attention(const OptShape& shape, DType cache);
  void whole(const char* test, const OptShape& shape, int bits, int64_t tokens, bool steady_too);
  void add(const std::string& test, const std::string& model, int64_t out, int64_t in, int bits,
           int64_t tokens, const Timing& timing, int64_t bytes, double times_faster = 0);
  /// Now and then, so that what a time limit cuts off is little.
  void save();

  CudaBackend &backend_, &steady_;
  cuda::Machine& machine_;
  const Plan& plan_;
  double copy_ = 0;  ///< bytes a second, read and written
  nlohmann::json file_, rows_ = nlohmann::json::array();
  std::string output_, crossings_;
  std::map<std::tuple<int64_t, int64_t, int64_t>, double> half_seconds_;
};

void Bench::copy_bandwidth() {
  const Tensor from(backend_, DType::u8, {plan_.copied_bytes}), to(backend_, DType::u8, {plan_.copied_bytes});
  machine_.clear(from.view().as<void>(), plan_.copied_bytes);
  const Timing timing = time_calls(machine_, 1, plan_.repeats / 2, [&](int64_t) {
    machine_.copy_in(to.view().as<void>(), from.view().data, plan_.copied_bytes);
  });
  copy_ = 2 * double(plan_.copied_bytes) / timing.median;
  file_["copy_gb_per_second"] = 1e-9 * copy_;
  std::printf("%s, copy bandwidth %.0f GB/s\n\n", machine_.facts().name.c_str(), 1e-9 * copy_);
  std::printf(
      "| test | shape | bits | tokens | us (lowest, highest) | GB/s | of copy | x cuBLASLt f16 | tokens/s |\n"
      "|---|---|---:|---:|---:|---:|---:|---:|---:|\n");
}

void Bench::add(const std::string& test, const std::string& model, int64_t out, int64_t in, int bits,
                int64_t tokens, const Timing& timing, int64_t bytes, double times_faster) {
  const double rate = double(bytes) / timing.median;
  nlohmann::json row = {{"test", test},
                        {"model", model},
                        {"out_features", out},
                        {"in_features", in},
                        {"bits", bits},
                        {"tokens", tokens},
                        {"microseconds", 1e6 * timing.median},
                        {"lowest", 1e6 * timing.lowest},
                        {"highest", 1e6 * timing.highest},
                        {"bytes", bytes},
                        {"gb_per_second", 1e-9 * rate},
                        {"of_copy", rate / copy_}};
  std::string against, speed;
  const auto half = half_seconds_.find({out, in, tokens});
  if (test == "linear" && half != half_seconds_.end()) {
    row["times_cublaslt_f16"] = half->second / timing.median;
    against = std::to_string(half->second / timing.median).substr(0, 5);
  }
  if (times_faster > 0) row["slower_than_otherwise"] = 1 / times_faster;
  if (test != "linear" && test != "cublaslt") {
    row["tokens_per_second"] = double(tokens) / timing.median;
    speed = std::to_string(int64_t(double(tokens) / timing.median));
  }
  std::printf("| %s | %s %ldx%ld | %d | %ld | %.1f (%.1f, %.1f) | %.0f | %.0f %% | %s | %s |\n", test.c_str(),
              model.c_str(), long(out), long(in), bits, long(tokens), 1e6 * timing.median,
              1e6 * timing.lowest, 1e6 * timing.highest, 1e-9 * rate, 100 * rate / copy_, against.c_str(),
              speed.c_str());
  std::fflush(stdout);
  rows_.push_back(row);
}

// A few rows and tokens against f64 on the same codes; x rounded as the kernel does.
void Bench::verify(const AffineMatrix& matrix, const std::vector<float>& x, const Tensor& y, int64_t tokens,
                   const std::string& what) {
  const std::vector<float> values = y.to_floats();
  std::vector<float> actual, expected;
  for (const int64_t row : {int64_t(0), matrix.out_features / 2 + 1, matrix.out_features - 1})
    for (const int64_t token : {int64_t(0), tokens - 1}) {
      double sum = 0;
      for (int64_t k = 0; k < matrix.in_features; ++k)
        sum += double(matrix.value(row, k)) *
               double(f16_to_f32(f32_to_f16(x[size_t(token * matrix.in_features + k)])));
      expected.push_back(float(sum));
      actual.push_back(values[size_t(token * matrix.out_features + row)]);
    }
  for (const float value : values)
    if (std::isnan(value)) throw RuntimeFailure(what + ": an output was not written");
  if (const double error = device::relative_error(actual, expected); !(error < 1e-3))
    throw RuntimeFailure(str(what, ": wrong results, relative error ", error));
}

void Bench::halves(const char* model, int64_t out, int64_t in) {
  const int64_t bytes = 2 * out * in, copies = plan_.rotated_bytes / bytes + 1;
  Random random(1);
  std::vector<uint16_t> block(1 << 20);
  for (uint16_t& value : block) value = f32_to_f16(random.uniform(-0.05f, 0.05f));
  std::vector<Tensor> weights;
  for (int64_t copy = 0; copy < copies; ++copy) {
    weights.emplace_back(backend_, DType::u8, Shape{bytes});
    for (int64_t at = 0; at < out * in; at += int64_t(block.size()))
      machine_.copy_in(weights.back().view().as<uint16_t>() + at, block.data(),
                       2 * std::min<int64_t>(int64_t(block.size()), out * in - at));
  }
  for (const int64_t tokens : plan_.tokens) {
    if (half_seconds_.contains({out, in, tokens})) continue;
    const Tensor x(backend_, DType::u8, {2 * tokens * in}), y(backend_, DType::f32, {tokens, out});
    for (int64_t at = 0; at < tokens * in; at += int64_t(block.size()))
      machine_.copy_in(x.view().as<uint16_t>() + at, block.data(),
                       2 * std::min<int64_t>(int64_t(block.size()), tokens * in - at));
    const Timing timing = time_calls(machine_, copies, plan_.repeats, [&](int64_t i) {
      machine_.multiply({.a = x.view().data,
                         .b = weights[size_t(i)].view().data,
                         .out = y.view().as<float>(),
                         .rows = tokens,
                         .columns = out,
                         .inner = in});
    });
    half_seconds_[{out, in, tokens}] = timing.median;
    add("cublaslt", model, out, in, 16, tokens, timing, bytes + 2 * tokens * in + 4 * tokens * out);
  }
}

void Bench::layer(const char* model, int64_t out, int64_t in, int bits) {
  const AffineMatrix matrix = random_matrix(backend_, bits, out, in, 128, uint64_t(bits));
  std::vector<Weight> weights;
  int64_t total = 0;
  do {
    weights.push_back(Weight::quantized(backend_, matrix));
    total += weights.back().bytes();
  } while (total < plan_.rotated_bytes);
  Random random(2);
  for (const int64_t tokens : plan_.tokens) {
    const std::vector<float> input = random.floats(tokens * in);
    const Tensor x = Tensor::from_floats(backend_, input, {tokens, in});
    const Tensor y = Tensor::from_floats(
        backend_, std::vector<float>(size_t(tokens * out), std::numeric_limits<float>::quiet_NaN()),
        {tokens, out});
    const auto multiply = [&](int64_t i) {
      weights[size_t(i)].visit([&]<class View>(const View& view) {
        backend_.run(Linear<View>{.x = x.view(), .weight = view, .y = y.view()});
      });
    };
    multiply(0);
    const std::string what = str(out, "x", in, ", ", bits, " bits, ", tokens, " tokens");
    verify(matrix, input, y, tokens, what);
    const Timing timing = time_calls(machine_, int64_t(weights.size()), plan_.repeats, multiply);
    verify(matrix, input, y, tokens, what);
    add("linear", model, out, in, bits, tokens, timing, weights[0].bytes() + 4 * tokens * (in + out));
  }
  if (out > in) crossing(model, weights, matrix);
}

// What CudaBackend::kDecodeTokens is chosen by.
void Bench::crossing(const char* model, const std::vector<Weight>& weights, const AffineMatrix& matrix) {
  const int64_t out = matrix.out_features, in = matrix.in_features;
  int64_t from = 0;  // this many tokens on, decoding is faster
  Random random(3);
  for (const int64_t tokens : plan_.crossing) {
    const std::vector<float> input = random.floats(tokens * in);
    const Tensor x = Tensor::from_floats(backend_, input, {tokens, in});
    double seconds[2] = {};
    for (const bool decoded : {false, true}) {
      const Tensor y = Tensor::from_floats(
          backend_, std::vector<float>(size_t(tokens * out), std::numeric_limits<float>::quiet_NaN()),
          {tokens, out});
      backend_.decode_from(decoded ? 1 : INT64_MAX);
      const Timing timing = time_calls(machine_, int64_t(weights.size()), plan_.repeats / 2, [&](int64_t i) {
        weights[size_t(i)].visit([&]<class View>(const View& view) {
          backend_.run(Linear<View>{.x = x.view(), .weight = view, .y = y.view()});
        });
      });
      verify(matrix, input, y, tokens,
             str(out, "x", in, decoded ? ", decoded, " : ", codes, ", tokens, " tokens"));
      seconds[decoded] = timing.median;
      add(decoded ? "linear, decoded" : "linear, codes", model, out, in, matrix.bits, tokens, timing,
          weights[0].bytes() + 4 * tokens * (in + out));
    }
    backend_.decode_from(CudaBackend::kDecodeTokens);
    if (seconds[1] >= seconds[0])
      from = 0;
    else if (from == 0)
      from = tokens;
  }
  const std::string found =
      from > 0 ? str("from ", from, " tokens on") : str("at none of these numbers of tokens");
  crossings_ += str(out, "x", in, ", ", matrix.bits, " bits: decoding is faster ", found,
                    " (kDecodeTokens is ", CudaBackend::kDecodeTokens, ")\n");
}

// One row behind a long past, as decoding has it, all of whose keys and values come from memory.
void Bench::attention(const OptShape& shape, DType type) {
  const int64_t head_dim = shape.hidden / shape.heads, pages = plan_.past / kPagePositions + 1;
  const Shape cache_shape{pages, 2, shape.heads, cache_page_elements(type, head_dim)};
  const int64_t bytes = cache_shape.elements() * size_of(type);
  Random random(4);
  const std::vector<float> values = random.floats(shape.hidden);
  const Tensor q = Tensor::from_floats(backend_, values, {1, shape.hidden}),
               out = Tensor::from_floats(backend_, values, {1, shape.hidden});
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  // Floats between 1 and 2, and as many bytes of the same memory as codes and scales.
  std::vector<Tensor> memory;
  for (int64_t total = 0; total < plan_.rotated_bytes || memory.empty(); total += bytes)
    memory.push_back(Tensor::from_floats(backend_, random.floats(bytes / 4, 1, 2), {bytes / 4}));
  const AttentionSpan span{0, 1, int32_t(plan_.past), order.data()};
  const Timing timing = time_calls(machine_, int64_t(memory.size()), plan_.repeats, [&](int64_t i) {
    backend_.run(Attention{
        .q = q.view(),
        .k = q.view(),
        .v = q.view(),
        .cache = OutputView(memory[size_t(i)].view().as<void>(), type, cache_shape, backend_.device()),
        .spans = {&span, 1},
        .heads = shape.heads,
        .scale = 1 / std::sqrt(float(head_dim)),
        .out = out.view()});
  });
  for (const float value : out.to_floats())
    if (!std::isfinite(value)) throw RuntimeFailure(str(shape.name, ": attention is not finite"));
  add(type == DType::f32 ? "attention" : "attention, codes", shape.name, plan_.past + 1, shape.hidden,
      type == DType::f32 ? 32 : 8, 1, timing, bytes);
}

/// The layers of a decoder with random weights and the head behind them. Layers that together are far beyond the cache stand
/// for the rest as well.
class Decoder {
 public:
  /// A step of `rows` tokens: one behind a short past, or so many that begin a text.
  Decoder(CudaBackend& backend, const OptShape& shape, int bits, int64_t rotated_bytes, int64_t rows = 1)
      : backend_(backend),
        shape_(shape),
        span_{0, int32_t(rows), rows == 1 ? kPast : 0, nullptr},
        page_count_(std::max(kPages, (rows + kPagePositions - 1) / kPagePositions)),
        workspace_(backend) {
    Random random(3);
    int64_t total = 0;
    for (int64_t i = 0; i < shape.layers && total < 2 * rotated_bytes; ++i) {
      blocks_.push_back(block(random, bits));
      total += blocks_.back()->bytes();
    }
    // The head has 8 bits, as quantized models have it.
    head_.weight =
        Weight::quantized(backend, random_matrix(backend, 8, shape.vocab, shape.hidden, shape.hidden, 9));
    for (int64_t i = 0; i < shape.layers; ++i)
      caches_.push_back(
          Tensor::from_floats(backend, random.floats(page_count_ * 2 * shape.hidden * kPagePositions),
                              {page_count_, 2, shape.heads, shape.hidden / shape.heads * kPagePositions}));
    for (const Tensor& cache : caches_) views_.push_back(cache.view());
    for (int32_t page = 0; page < page_count_; ++page) pages_.push_back(page);
    span_.pages = pages_.data();
    hidden_ = Tensor::from_floats(backend, random.floats(rows * shape.hidden), {rows, shape.hidden});
    logits_ = Tensor(backend, DType::f32, {1, shape.vocab});
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), span_.past);
    positions_ = Tensor(backend, DType::i32, {rows});
    backend.copy_to_device(positions_.view().as<void>(), positions.data(), positions_.bytes());
  }

  void step() {
    const nn::BatchRows rows{.positions = positions_.view(), .spans = {&span_, 1}};
    const nn::ForwardContext context{backend_, workspace_, rows, views_};
    for (int64_t layer = 0; layer < shape_.layers; ++layer) {
      nn::Block& block = *blocks_[size_t(layer) % blocks_.size()];
      static_cast<nn::AttentionBranch&>(*block.branches[0]).layer = int(layer);
      block.forward(context, hidden_.view());
    }
    head_.forward(context, hidden_.view().rows(span_.rows - 1, 1), logits_.view());
  }
  bool finite() const {
    const std::vector<float> logits = logits_.to_floats();
    return std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); });
  }
  /// What one token reads: every layer's weights, its own.
  int64_t bytes() const { return blocks_[0]->bytes() * shape_.layers + head_.bytes(); }

 private:
  static constexpr int32_t kPast = 63;
  static constexpr int64_t kPages = 4;

  nn::Linear linear(Random& random, int bits, int64_t out, int64_t in) {
    nn::Linear layer;
    const int64_t group_size = in % 128 == 0 ? 128 : in;
    layer.weight =
        Weight::quantized(backend_, random_matrix(backend_, bits, out, in, group_size, random.bits()));
    layer.bias = Tensor::from_floats(backend_, random.floats(out, -0.01f, 0.01f), {out});
    return layer;
  }
  nn::LayerNorm norm() {
    nn::LayerNorm made;
    made.weight =
        Tensor::from_floats(backend_, std::vector<float>(size_t(shape_.hidden), 1), {shape_.hidden});
    made.bias = Tensor::from_floats(backend_, std::vector<float>(size_t(shape_.hidden), 0), {shape_.hidden});
    return made;
  }
  std::unique_ptr<nn::Block> block(Random& random, int bits) {
    const int64_t hidden = shape_.hidden;
    auto attention = std::make_unique<nn::AttentionBranch>();
    for (nn::Linear* layer : {&attention->q, &attention->k, &attention->v, &attention->out})
      *layer = linear(random, bits, hidden, hidden);
    attention->norm = norm();
    attention->heads = shape_.heads;
    auto mlp = std::make_unique<nn::MlpBranch>();
    mlp->fc1 = linear(random, bits, 4 * hidden, hidden);
    mlp->fc2 = linear(random, bits, hidden, 4 * hidden);
    mlp->norm = norm();
    auto made = std::make_unique<nn::Block>();
    made->branches.push_back(std::move(attention));
    made->branches.push_back(std::move(mlp));
    return made;
  }

  CudaBackend& backend_;
  OptShape shape_;
  AttentionSpan span_;
  int64_t page_count_;
  Workspace workspace_;
  std::vector<std::unique_ptr<nn::Block>> blocks_;
  nn::Linear head_;
  std::vector<Tensor> caches_;
  std::vector<OutputView> views_;
  std::vector<int32_t> pages_;
  Tensor hidden_, logits_, positions_;
};

// A step of `tokens`, without and with --deterministic.
void Bench::whole(const char* test, const OptShape& shape, int bits, int64_t tokens, bool steady_too) {
  double otherwise = 0;
  for (CudaBackend* backend : {&backend_, &steady_}) {
    if (backend == &steady_ && !steady_too) return;
    Decoder decoder(*backend, shape, bits, plan_.rotated_bytes, tokens);
    const Timing timing = time_calls(backend->machine(), 1, plan_.repeats, [&](int64_t) { decoder.step(); });
    if (!decoder.finite()) throw RuntimeFailure(str(shape.name, ": logits are not finite"));
    const bool steady = backend == &steady_;
    add(steady ? str(test, " --deterministic") : test, shape.name, shape.hidden, shape.hidden, bits, tokens,
        timing, decoder.bytes(), steady ? otherwise / timing.median : 0);
    otherwise = timing.median;
  }
}

void Bench::save() {
  file_["rows"] = rows_;
  std::ofstream file(output_);
  file << file_.dump(1) << "\n";
  if (!file.flush()) throw RuntimeFailure("cannot write " + output_);
}

void Bench::run() {
  copy_bandwidth();
  save();
  for (const OptShape& shape : plan_.shapes) {
    for (const auto& [out, in] :
         {std::pair(shape.hidden, shape.hidden), std::pair(4 * shape.hidden, shape.hidden),
          std::pair(shape.hidden, 4 * shape.hidden)}) {
      halves(shape.name, out, in);
      for (const int bits : {4, 3, 2}) layer(shape.name, out, in, bits);
      save();
    }
    for (const DType cache : {DType::f32, DType::u8}) attention(shape, cache);
    for (const int bits : {4, 3, 2}) whole("decode", shape, bits, 1, bits == 4);
    whole("prompt", shape, 4, plan_.prompt, true);
    save();
  }
  std::printf("\n%s", crossings_.c_str());
}

int run(const std::string& commit, const std::string& date, const std::string& output, bool small) {
  if (const std::string reason = cuda::why_unavailable(); !reason.empty()) {
    std::printf("device_bench: skipped, %s\n", reason.c_str());
    return device::kSkipped;
  }
  const auto backend = make_cuda_backend({.device = "cuda"}),
             steady = make_cuda_backend({.device = "cuda", .deterministic = true});
  Plan plan;
  if (small) plan = {kTiny, {1, 9}, 1 << 16, 1 << 20, 3, 20, {64, 96}, 40};
  auto& cuda_backend = static_cast<CudaBackend&>(*backend);
  const cuda::MachineFacts& facts = cuda_backend.machine().facts();
  const nlohmann::json about{{"device", facts.name},
                             {"commit", commit},
                             {"date", date},
                             {"multiprocessors", facts.multiprocessors},
                             {"group_size", 128}};
  Bench(cuda_backend, static_cast<CudaBackend&>(*steady), plan, about, output).run();
  return 0;
}

}  // namespace
}  // namespace ballast

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (count < 4) {
    std::fprintf(stderr, "usage: device_bench COMMIT DATE OUTPUT.json [--short]\n");
    return 2;
  }
  try {
    return ballast::run(arguments[1], arguments[2], arguments[3],
                        count > 4 && std::string(arguments[4]) == "--short");
  } catch (const std::exception& error) {
    std::printf("device_bench: %s\n", error.what());
    return ballast::device::kFailed;
  }
}
