// The CUDA backend against the CPU backend: every kernel, then whole models. Fresh random inputs for every check, outputs
// poisoned with NaNs before.
//
// usage: device_check SOURCE_DIR [--short] [PART...]      --short: few and small cases, for memory checkers and for the emulator
//        device_check --parts                             what PART may be, all of them by default
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <numeric>

#include "engine/runtime/runner.h"
#include "kernels/cuda/cuda_backend.h"
#include "models/registry.h"
#include "tests/device/check_quantizer.h"
#include "tests/support/matrices.h"
#include "tests/support/rounded_model.h"

namespace ballast {
namespace {

using device::relative_error;
using device::Report;
using test::Random;

struct Devices {
  std::unique_ptr<Backend> cpu, cuda;
  double rounding;  ///< of one value to the 16 bits that the tensor cores get
  std::string name;
};

Devices open_devices(const std::string& activations) {
  return {find_backend({.device = "cpu"}), make_cuda_backend({.device = "cuda", .activations = activations}),
          activations == "bf16" ? 0x1p-8 : 0x1p-11, activations == "bf16" ? "bf16" : "f16"};
}

Tensor poisoned(Backend& backend, Shape shape) {
  return Tensor::from_floats(
      backend, std::vector<float>(size_t(shape.elements()), std::numeric_limits<float>::quiet_NaN()), shape);
}
Tensor on_device(Backend& backend, const std::vector<int32_t>& values) {
  Tensor tensor(backend, DType::i32, {int64_t(values.size())});
  backend.copy_to_device(tensor.view().as<void>(), values.data(), tensor.bytes());
  return tensor;
}

// One linear layer with everything that can be added to it, on one backend.
struct LayerCase {
  Shape shape;
  int64_t tokens;
  std::vector<float> x, bias, residual, position_bias;
  std::vector<int32_t> positions;
  Activation activation;

  LayerCase(Random& random, Shape dims, int64_t count)
      : shape(dims),
        tokens(count),
        x(random.floats(count * dims[1], -2, 2)),
        bias(random.floats(dims[0])),
        residual(random.floats(count * dims[0])),
        position_bias(random.floats(5 * dims[0])),
        activation(Activation(count % 3)) {
    for (int64_t t = 0; t < count; ++t) positions.push_back(int32_t(random.below(8)));
  }

  std::vector<float> run(Backend& backend, const Weight& weight) const {
    const Tensor on_x = Tensor::from_floats(backend, x, {tokens, shape[1]});
    const Tensor on_bias = Tensor::from_floats(backend, bias, {shape[0]});
    const Tensor y = Tensor::from_floats(backend, residual, {tokens, shape[0]});  // the residual is y itself
    const Tensor on_position_bias = Tensor::from_floats(backend, position_bias, {5, shape[0]});
    const Tensor on_positions = on_device(backend, positions);
    weight.visit([&]<class View>(const View& view) {
      backend.run(Linear<View>{.x = on_x.view(),
                               .weight = view,
                               .bias = on_bias.view(),
                               .position_bias = on_position_bias.view(),
                               .positions = on_positions.view(),
                               .activation = activation,
                               .residual = y.view(),
                               .y = y.view()});
    });
    return y.to_floats();
  }
};

void check_layer(const Devices& devices, Report& report, const QuantizedMatrix& matrix, int64_t tokens,
                 const std::string& what, double bound) {
  Random random(uint64_t(tokens) + 17);
  const LayerCase layer(random, {out_features(matrix), in_features(matrix)}, tokens);
  const std::vector<float> expected = layer.run(*devices.cpu, Weight::quantized(*devices.cpu, matrix));
  const Weight weight = Weight::quantized(*devices.cuda, matrix);
  const std::vector<float> actual = layer.run(*devices.cuda, weight);
  report.expect_below(relative_error(actual, expected), bound, what);
  report.expect(layer.run(*devices.cuda, weight) == actual, what + ": another run gives the same bits");
}

void check_linear(const Devices& devices, Report& report, bool small) {
  struct Case {
    Shape shape;
    int64_t group_size;
  };
  const std::vector<Case> cases =
      small ? std::vector<Case>{{{130, 320}, 64}, {{40, 96}, 16}}
            : std::vector<Case>{{{1000, 4096}, 128}, {{768, 3072}, 3072}, {{130, 192}, 64},
                                {{50272, 768}, 768}, {{272, 1024}, 16},   {{33, 48}, 48}};
  const std::vector<int64_t> counts =
      small ? std::vector<int64_t>{1, 9, 70}
            : std::vector<int64_t>{1, 2, 7, 16, 31, 64, 100, 128, 300, 512, 1500};
  uint64_t seed = 1;
  for (const int bits : {2, 3, 4, 8})
    for (const Case& layer : cases)
      for (const int64_t tokens : counts) {
        if (layer.shape[0] > 10000 && tokens > 64) continue;
        Random random(++seed);
        const AffineMatrix matrix =
            test::random_affine(random, bits, layer.shape[0], layer.shape[1], layer.group_size);
        check_layer(devices, report, matrix, tokens,
                    str(bits, " bits ", devices.name, " ", layer.shape.text(), " g", layer.group_size, ", ",
                        tokens, " tokens"),
                    2 * devices.rounding);
      }
  Random random(5);
  for (const int64_t tokens : {1, 20}) {
    check_layer(devices, report, test::random_outliers(random, 3, 3, 200, 256, 16), tokens, "outliers",
                2 * devices.rounding);
    check_layer(devices, report, test::random_binary(random, 200, 256, 128), tokens, "residual binary",
                2 * devices.rounding);
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      const test::DenseMatrix matrix(dtype, 200, 264, random.floats(200 * 264));
      const LayerCase layer(random, {200, 264}, tokens);
      report.expect_below(
          relative_error(layer.run(*devices.cuda, Weight::dense(*devices.cuda, matrix.stored())),
                         layer.run(*devices.cpu, Weight::dense(*devices.cpu, matrix.stored()))),
          dtype == DType::f32   ? 1e-5
          : dtype == DType::f16 ? 0x1p-10
                                : 0x1p-7,
          str("dense ", name_of(dtype), ", ", tokens, " tokens"));
    }
  }
}

void check_tables(const Devices& devices, Report& report) {
  Random random(6);
  const std::vector<int32_t> ids{0, 36, 3, 3, 17};
  const auto rows_of = [&](Backend& backend, const Weight& table) {
    const Tensor y = poisoned(backend, {int64_t(ids.size()), table.in_features()});
    const Tensor on_ids = on_device(backend, ids);
    table.visit([&]<class View>(const View& view) {
      backend.run(Embedding<View>{.ids = on_ids.view(), .table = view, .y = y.view()});
    });
    return y.to_floats();
  };
  const auto check = [&](const QuantizedMatrix& matrix, const std::string& what) {
    report.expect(rows_of(*devices.cuda, Weight::quantized(*devices.cuda, matrix)) ==
                      rows_of(*devices.cpu, Weight::quantized(*devices.cpu, matrix)),
                  "rows of a table, " + what);
  };
  for (const int bits : {2, 3, 4, 8})
    check(test::random_affine(random, bits, 37, 320, 64), str(bits, " bits"));
  check(test::random_affine(random, 3, 37, 36, 9), "groups of 9");
  check(test::random_outliers(random, 3, 3, 37, 96, 16), "outliers");
  check(test::random_binary(random, 37, 96, 32), "residual binary");
}

void check_norm(const Devices& devices, Report& report) {
  Random random(7);
  for (const int64_t hidden : {1, 100, 768, 9216}) {
    const std::vector<float> x = random.floats(3 * hidden, 1, 5), weight = random.floats(hidden),
                             bias = weight;
    const auto run = [&](Backend& backend) {
      const Tensor y = Tensor::from_floats(backend, x, {3, hidden});
      const Tensor on_weight = Tensor::from_floats(backend, weight, {hidden});
      const Tensor on_bias = Tensor::from_floats(backend, bias, {hidden});
      backend.run(
          LayerNorm{.x = y.view(), .weight = on_weight.view(), .bias = on_bias.view(), .y = y.view()});
      return y.to_floats();
    };
    report.expect_below(relative_error(run(*devices.cuda), run(*devices.cpu)), 1e-5,
                        str("layernorm of ", hidden));
  }
}

// A prompt, a second chunk and single steps over one paged cache; `cached` gets its memory.
std::vector<float> attend(Backend& backend, DType type, int64_t heads, int64_t head_dim,
                          const std::vector<int64_t>& chunks, uint64_t seed,
                          std::vector<uint8_t>* cached = nullptr) {
  Random random(seed);
  const int64_t width = heads * head_dim, total = std::accumulate(chunks.begin(), chunks.end(), int64_t(0));
  const int64_t pages = (total + kPagePositions - 1) / kPagePositions;
  const int64_t elements = cache_page_elements(type, head_dim);
  const Tensor memory = poisoned(backend, {pages * 2 * heads * elements * size_of(type) / 4});
  const OutputView cache(memory.view().as<void>(), type, {pages, 2, heads, elements}, backend.device());
  const std::vector<int32_t> order = random.permutation(pages);
  std::vector<float> all;
  int64_t past = 0;
  for (const int64_t rows : chunks) {
    const auto input = [&](float size) {
      return Tensor::from_floats(backend, random.floats(rows * width, -size, size), {rows, width});
    };
    const Tensor q = input(2), k = input(2), v = input(1), out = poisoned(backend, {rows, width});
    const AttentionSpan span{0, int32_t(rows), int32_t(past), order.data()};
    backend.run(Attention{.q = q.view(),
                          .k = k.view(),
                          .v = v.view(),
                          .cache = cache,
                          .spans = {&span, 1},
                          .heads = heads,
                          .scale = 1 / std::sqrt(float(head_dim)),
                          .out = out.view()});
    const std::vector<float> values = out.to_floats();
    all.insert(all.end(), values.begin(), values.end());
    past += rows;
  }
  if (cached) {
    cached->resize(size_t(memory.bytes()));
    backend.copy_to_host(cached->data(), memory.view().data, memory.bytes());
  }
  return all;
}

void check_attention(const Devices& devices, Report& report, bool small) {
  const std::vector<int64_t> chunks =
      small ? std::vector<int64_t>{20, 1} : std::vector<int64_t>{300, 77, 5, 1, 1, 64};
  for (const int64_t head_dim : {40, 64, 80, 128}) {
    const std::string what = str("attention, heads of ", head_dim);
    report.expect_below(relative_error(attend(*devices.cuda, DType::f32, 3, head_dim, chunks, 9),
                                       attend(*devices.cpu, DType::f32, 3, head_dim, chunks, 9)),
                        0x1p-9, what);
    std::vector<uint8_t> here, there;
    const std::vector<float> expected = attend(*devices.cpu, DType::u8, 3, head_dim, chunks, 9, &here);
    report.expect_below(
        relative_error(attend(*devices.cuda, DType::u8, 3, head_dim, chunks, 9, &there), expected), 0x1p-9,
        what + ", cache of codes");
    report.expect(here == there, what + ": codes and scales are those of the CPU");
  }
}

// Images whose probabilities are rounded; single ones may fall on another code than the CPU's.
void check_rounded_attention(const Devices& devices, Report& report) {
  constexpr int64_t kHeads = 3, kHeadDim = 64, kWidth = kHeads * kHeadDim, kTokens = 197;
  Random random(10);
  const std::vector<float> q = random.floats(2 * kTokens * kWidth, -2, 2), k = q,
                           v = random.floats(2 * kTokens * kWidth);
  const AttentionSpan spans[] = {{0, kTokens}, {kTokens, kTokens}};
  using Kind = ActivationGrid::Kind;
  for (const ActivationGrid& grid :
       {ActivationGrid{.kind = Kind::twin_size, .step = 1.0f / 127 / 32, .shift = 5},
        ActivationGrid{.kind = Kind::logarithm, .bits = 4, .per_octave = 2}}) {
    const auto run = [&](Backend& backend) {
      const Shape shape{2 * kTokens, kWidth};
      const Tensor queries = Tensor::from_floats(backend, q, shape),
                   keys = Tensor::from_floats(backend, k, shape),
                   values = Tensor::from_floats(backend, v, shape), out = poisoned(backend, shape);
      backend.run(Attention{.q = queries.view(),
                            .k = keys.view(),
                            .v = values.view(),
                            .spans = spans,
                            .heads = kHeads,
                            .scale = 0.125f,
                            .mask = Mask::full,
                            .probability_grid = grid,
                            .out = out.view()});
      return out.to_floats();
    };
    report.expect_below(relative_error(run(*devices.cuda), run(*devices.cpu)), 1e-3,
                        str("attention, probabilities of a grid: ", name_of(grid.kind)));
  }
}

/// One sequence through a model, a step at a time.
class Session {
 public:
  Session(Backend& backend, const std::filesystem::path& folder, CacheType type = CacheType::f32)
      : backend_(backend),
        checkpoint_(Checkpoint::open(folder)),
        model_(load_model(checkpoint_, backend)),
        cache_(backend, model_->facts(), model_->facts().layers, 512, type),
        runner_(backend, *model_, cache_) {
    CHECK(cache_.reserve(pages_, 512));
    // Codes are read a page at a time, also those that nothing has written yet and nobody uses: a checker of such reads would
    // report them.
    if (type == CacheType::int8)
      for (const OutputView& layer : cache_.views()) backend.clear(layer.as<void>(), layer.bytes());
  }
  /// Logits of the last token of `ids`, which go behind what was fed before.
  std::vector<float> feed(const std::vector<int32_t>& ids) {
    Batch batch;
    batch.add(ids, past_, pages_);
    batch.want_logits();
    past_ += int64_t(ids.size());
    const TensorView logits = runner_.run(batch);
    std::vector<float> values(size_t(logits.shape.elements()));
    backend_.copy_to_host(values.data(), logits.data, logits.bytes());
    return values;
  }

 private:
  Backend& backend_;
  Checkpoint checkpoint_;
  std::unique_ptr<nn::Model> model_;
  KvCache cache_;
  Runner runner_;
  PageTable pages_;
  int64_t past_ = 0;
};

// The likeliest token at every step, fed to both devices; they may disagree where the CPU's two best logits are closer than
// twice the largest difference that rounding explains, see tests/kernels/cuda/model_test.cpp. In a cache of codes, keys and
// values that differ by roundings to 16 bits may have codes that differ by one: 2^-7 of the largest in a vector, which some
// do in each of the four layers, twice.
void check_model(const Devices& devices, Report& report, const std::filesystem::path& folder,
                 const std::string& what, int64_t tokens, CacheType type = CacheType::f32) {
  Session cpu(*devices.cpu, folder, type), cuda(*devices.cuda, folder, type);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 20; ++i) ids.push_back(5 + i * 131 % 4000);
  double worst = 0;
  for (int64_t step = 0; step < tokens; ++step) {
    const std::vector<float> expected = cpu.feed(ids), logits = cuda.feed(ids);
    double largest = 0, difference = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      largest = std::max(largest, std::abs(double(expected[i])));
      difference = std::max(difference, std::abs(double(logits[i]) - expected[i]));
      if (std::isnan(logits[i])) difference = NAN;
    }
    const double bound =
        (40 * devices.rounding / 2 + (type == CacheType::int8 ? std::sqrt(8.0) * 0x1p-7 : 0)) * largest;
    report.expect_below(difference, bound, str(what, ", logits of step ", step));
    worst = std::max(worst, difference / largest);
    const auto best = std::max_element(expected.begin(), expected.end());
    const auto chosen = std::max_element(logits.begin(), logits.end()) - logits.begin();
    report.expect_below(double(*best) - expected[size_t(chosen)], 2 * bound,
                        str(what, ", choice of step ", step));
    ids = {int32_t(best - expected.begin())};
  }
  std::printf("%s: largest difference of a logit %.2g of the largest logit\n", what.c_str(), worst);
}

// The bundled model's logits of a prompt's end, from one chunk and from several: the same bits where that is asked for.
void check_deterministic(Report& report, const std::filesystem::path& source, bool small) {
  const auto cuda = make_cuda_backend({.device = "cuda", .deterministic = true});
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < (small ? 18 : 200); ++i) ids.push_back(5 + i * 131 % 4000);
  Session whole(*cuda, source / "models/demo"), parts(*cuda, source / "models/demo");
  const auto middle = ids.begin() + (small ? 16 : 130);
  parts.feed({ids.begin(), middle});
  report.expect(parts.feed({middle, ids.end()}) == whole.feed(ids),
                "--deterministic: chunks give the same bits");
}

void check_models(const Devices& devices, Report& report, const std::filesystem::path& source, bool small) {
  std::string folder = (std::filesystem::temp_directory_path() / "ballast-device-XXXXXX").string();
  if (!::mkdtemp(folder.data())) throw RuntimeFailure("cannot make a temporary folder");
  for (const int bits : small ? std::vector{4} : std::vector{2, 3, 4, 8}) {
    const std::filesystem::path model = std::filesystem::path(folder) / str(bits);
    test::write_rounded(source / "models/demo", model, bits, 64);
    check_model(devices, report, model, str("demo model, ", bits, " bits ", devices.name), small ? 4 : 200);
    if (bits == 4)
      check_model(devices, report, model, str("demo model, 4 bits ", devices.name, ", cache of codes"),
                  small ? 4 : 200, CacheType::int8);
  }
  std::filesystem::remove_all(folder);
  if (!small) check_model(devices, report, source / "models/demo", "demo model, f16", 200);
}

struct Part {
  const char* name;
  void (*check)(const Devices&, Report&, const std::filesystem::path& source, bool small);
};
using Path = std::filesystem::path;
constexpr Part kParts[] = {
    {"linear",
     [](const Devices& on, Report& report, const Path&, bool small) { check_linear(on, report, small); }},
    {"tables", [](const Devices& on, Report& report, const Path&, bool) { check_tables(on, report); }},
    {"norm", [](const Devices& on, Report& report, const Path&, bool) { check_norm(on, report); }},
    {"attention",
     [](const Devices& on, Report& report, const Path&, bool small) { check_attention(on, report, small); }},
    {"rounded",
     [](const Devices& on, Report& report, const Path&, bool) { check_rounded_attention(on, report); }},
    {"quantizer", [](const Devices& on, Report& report, const Path&,
                     bool small) { device::check_quantizer(*on.cpu, *on.cuda, report, small); }},
    {"deterministic", [](const Devices&, Report& report, const Path& source,
                         bool small) { check_deterministic(report, source, small); }},
    {"models", check_models}};

int run(const std::filesystem::path& source, bool small, const std::vector<std::string>& parts) {
  if (const std::string reason = cuda::why_unavailable(); !reason.empty()) {
    std::printf("device_check: skipped, %s\n", reason.c_str());
    return device::kSkipped;
  }
  Report report;
  for (const char* activations : {"f32", "bf16"}) {
    const Devices devices = open_devices(activations);
    std::printf("%s against %s\n", devices.cuda->description().c_str(), devices.cpu->description().c_str());
    for (const Part& part : kParts)
      if (parts.empty() || std::find(parts.begin(), parts.end(), part.name) != parts.end())
        part.check(devices, report, source, small);
  }
  return report.finish("device_check");
}

}  // namespace
}  // namespace ballast

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // findings are not lost with a process that is stopped
  if (count == 2 && std::string(arguments[1]) == "--parts") {
    for (const ballast::Part& part : ballast::kParts) std::printf("%s\n", part.name);
    return 0;
  }
  if (count < 2) {
    std::fprintf(stderr, "usage: device_check SOURCE_DIR [--short] [PART...]\n");
    return 2;
  }
  std::vector<std::string> parts(arguments + 2, arguments + count);
  const bool small = !parts.empty() && parts.front() == "--short";
  if (small) parts.erase(parts.begin());
  try {
    return ballast::run(arguments[1], small, parts);
  } catch (const std::exception& error) {
    std::printf("device_check: %s\n", error.what());
    return ballast::device::kFailed;
  }
}
