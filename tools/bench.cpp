// How fast a model runs here, beside how fast memory can be read.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "engine/runtime/runner.h"
#include "tools/bench_kernels.h"
#include "tools/bench_serve.h"
#include "tools/console.h"
#include "tools/loaded_model.h"
#include "tools/random_model.h"
#include "tools/subcommand.h"
#include "tools/version.h"

namespace ballast {
namespace {

struct BenchOptions {
  std::string model;
  RandomModel random;  ///< shape empty: not asked for
  std::string save;
  KernelBenchOptions kernel_options;
  ServeBenchOptions serve;
  int64_t prompt = 512, generate = 64, repeat = 5;
  bool kernels = false, force = false, json = false;
};

struct BenchRow {
  std::string test;
  int64_t tokens = 0;
  double rate = 0, deviation = 0;  ///< tokens per second
  double bytes_per_token = 0;      ///< weights read

  double bandwidth() const { return rate * bytes_per_token * 1e-9; }
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Bytes per second that all threads together read from a buffer far larger than any cache; the best of five.
double memory_read_rate(Backend& backend) {
  constexpr int64_t kWords = (int64_t(512) << 20) / 8, kPiece = int64_t(1) << 17;
  std::vector<uint64_t> buffer(size_t(kWords), 1);
  std::vector<uint64_t> sums(size_t(kWords / kPiece));
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double start = now();
    backend.parallel_for(kWords / kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        uint64_t sum = 0;
        const uint64_t* const words = buffer.data() + piece * kPiece;
        for (int64_t i = 0; i < kPiece; ++i) sum += words[i];
        sums[size_t(piece)] = sum;
      }
    });
    best = std::max(best, double(kWords * 8) / (now() - start));
    uint64_t total = 0;
    for (const uint64_t sum : sums) total += sum;
    CHECK(total == uint64_t(kWords), "the sum keeps the reads from being optimized away");
    check_interrupt();
  }
  return best;
}

class Bench {
 public:
  Bench(const BenchOptions& options, const GlobalOptions& global, Backend& backend, nn::Model& model)
      : options_(options),
        progress_(global),
        backend_(backend),
        model_(model),
        cache_(backend, model.facts(), model.facts().layers, std::max(options.prompt, options.generate)),
        runner_(backend, model, cache_) {
    std::mt19937 random(1);
    for (int64_t i = 0; i < std::max(options.prompt, options.generate); ++i)
      ids_.push_back(int32_t(random() % uint64_t(model.facts().vocab)));
    CHECK(cache_.reserve(pages_, int64_t(ids_.size())));
  }

  std::vector<BenchRow> run() {
    std::vector<BenchRow> rows;
    const double bytes = double(model_.bytes_per_token());
    if (options_.prompt > 0)
      rows.push_back(measure(str("pp", options_.prompt), options_.prompt, bytes / double(options_.prompt),
                             [&] { step(0, options_.prompt); }));
    if (options_.generate > 0)
      rows.push_back(measure(str("tg", options_.generate), options_.generate, bytes, [&] {
        for (int64_t i = 0; i < options_.generate; ++i) {
          step(i, 1);
          check_interrupt();
        }
      }));
    progress_.finish();
    return rows;
  }

 private:
  // One pass whose last row gets logits, as far as the host.
  void step(int64_t past, int64_t tokens) {
    batch_.clear();
    batch_.add(std::span(ids_).subspan(size_t(past), size_t(tokens)), past, pages_);
    batch_.want_logits();
    const TensorView logits = runner_.run(batch_);
    logits_.resize(size_t(logits.shape.elements()));
    backend_.copy_to_host(logits_.data(), logits.data, logits.bytes());
  }

  template <class Body>
  BenchRow measure(const std::string& test, int64_t tokens, double bytes_per_token, Body&& body) {
    body();  // warms caches and grows buffers
    double sum = 0, squares = 0;
    for (int64_t round = 0; round < options_.repeat; ++round) {
      progress_.update(str(test, ", run ", round + 1, " of ", options_.repeat));
      const double start = now();
      body();
      const double rate = double(tokens) / (now() - start);
      sum += rate;
      squares += rate * rate;
      check_interrupt();
    }
    const double runs = double(options_.repeat), mean = sum / runs;
    const double variance = runs > 1 ? std::max(0.0, (squares - runs * mean * mean) / (runs - 1)) : 0;
    return {test, tokens, mean, std::sqrt(variance), bytes_per_token};
  }

  const BenchOptions& options_;
  Progress progress_;
  Backend& backend_;
  nn::Model& model_;
  KvCache cache_;
  Runner runner_;
  PageTable pages_;
  Batch batch_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
};

/// A folder for a model that nobody keeps.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    path_ = (std::filesystem::temp_directory_path() / "ballast-bench-XXXXXX").string();
    if (!mkdtemp(path_.data())) throw RuntimeFailure(str(path_, ": cannot make a temporary folder"));
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void check(const BenchOptions& options) {
  if (options.model.empty() && options.random.shape.empty() && !options.kernels)
    throw Error("bench needs -m DIR, --random-model SHAPE or --kernels");
  if (!options.save.empty() && options.random.shape.empty())
    throw Error("--save makes no sense without --random-model: nothing was made that could be saved");
  if (!options.random.shape.empty()) options.random.check();
  if (options.prompt == 0 && options.generate == 0 && !options.kernels)
    throw Error("--prompt and --generate are both 0: nothing to measure");
}

nlohmann::json json_of(const BenchRow& row) {
  return {{"test", row.test},
          {"tokens", row.tokens},
          {"tokens_per_second", row.rate},
          {"stddev", row.deviation},
          {"bytes_per_token", row.bytes_per_token},
          {"bandwidth_gb_s", row.bandwidth()}};
}

void bench_model(const std::string& folder, const BenchOptions& options, const GlobalOptions& global,
                 Backend& backend, nlohmann::json& object) {
  LoadedModel model = load(folder, backend, false);
  const int64_t positions = model.model->facts().max_positions;
  for (const auto& [flag, value] :
       {std::pair("--prompt", options.prompt), std::pair("--generate", options.generate)})
    if (value > positions)
      throw Error(str(flag, " is ", value, ", expected at most the model's ", positions, " positions"));
  const double read = memory_read_rate(backend) * 1e-9;
  const std::vector<BenchRow> rows = Bench(options, global, backend, *model.model).run();
  object["memory_read_gb_s"] = read;
  object["weight_bytes"] = model.model->bytes_per_token();
  object["rows"] = nlohmann::json::array();
  for (const BenchRow& row : rows) object["rows"].push_back(json_of(row));
  if (options.json) return;
  std::string text = fmt::format("{}; memory reads at {:.2f} GB/s\n\n", backend.description(), read);
  text += "| test | tokens | tokens/s | MB per token | GB/s |\n|---|---:|---:|---:|---:|\n";
  for (const BenchRow& row : rows)
    text += fmt::format("| {} | {} | {:.2f} ± {:.2f} | {:.3f} | {:.2f} |\n", row.test, row.tokens, row.rate,
                        row.deviation, row.bytes_per_token * 1e-6, row.bandwidth());
  print(text);
}

void save(const BenchOptions& options) {
  const uint64_t bytes = write_random_model(options.random, options.save, options.force);
  if (options.json) return print_json({{"output", options.save}, {"tensor_bytes", bytes}});
  print(fmt::format("{}: {} with random weights, {}\n", options.save, options.random.shape,
                    human_bytes(double(bytes))));
}

void bench(const BenchOptions& options, const GlobalOptions& global) {
  if (!options.serve.url.empty()) return bench_serve(options.serve, options.json);
  check(options);
  if (!options.save.empty()) return save(options);
  const auto backend = find_backend(global.backend);
  nlohmann::json object = {
      {"device", backend->description()}, {"version", version()}, {"repeat", options.repeat}};
  if (!options.random.shape.empty()) {
    const TemporaryFolder folder;
    write_random_model(options.random, folder.path(), false);
    bench_model(folder.path(), options, global, *backend, object);
  } else if (!options.model.empty()) {
    bench_model(options.model, options, global, *backend, object);
  }
  if (options.kernels) {
    KernelBenchOptions kernel_options = options.kernel_options;
    kernel_options.repeat = options.repeat;
    kernel_options.threads = global.backend.threads;
    Progress progress(global);
    const std::vector<KernelRow> rows =
        bench_kernels(*backend, kernel_options, [&](const std::string& line) { progress.update(line); });
    progress.finish();
    for (const KernelRow& row : rows) object["kernels"].push_back(row.json());
    if (!options.json) print(fmt::format("{}\n\n{}", backend->description(), kernel_table(rows)));
  }
  if (options.json) print_json(object);
}

}  // namespace

Subcommand add_bench(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* app = root.add_subcommand("bench", "Measure the speed of a model on this machine");
  CLI::Option* const model =
      app->add_option("-m,--model", options->model, "Folder of the model")->type_name("DIR");
  const auto count = [&](const char* name, int64_t& value, int64_t low, const char* description) {
    app->add_option(name, value, description)
        ->type_name("N")
        ->check(CLI::Range(low, int64_t(1) << 30))
        ->capture_default_str();
  };
  count("--prompt", options->prompt, 0, "Tokens of the prompt test, run in one pass; 0: leave it out");
  count("--generate", options->generate, 0, "Tokens of the generation test, one pass each; 0: leave it out");
  count("--repeat", options->repeat, 1, "Runs of each test, after one to warm up");
  RandomModel& random = options->random;
  app->add_option("--random-model", random.shape, "A model with random weights instead: " + random_shapes())
      ->type_name("SHAPE")
      ->excludes(model);
  app->add_option("--save", options->save, "Only write the random model to this folder")->type_name("DIR");
  count("--layers", random.layers, 0, "Blocks of the random model; 0: all of the shape's");
  app->add_option("--bits", random.bits, "Of the random model's blocks: 16, or 2, 3, 4, 8 quantized")
      ->type_name("N")
      ->capture_default_str();
  count("--group-size", random.group_size, 0, "Columns that share a scale; 0: the whole row");
  app->add_option("--seed", random.seed, "Of the random model")->type_name("N")->capture_default_str();
  app->add_flag("--force", options->force, "Let --save overwrite a checkpoint");
  app->add_flag("--kernels", options->kernels,
                "Rates of the quantizer's heavy steps beside oneDNN's SGEMM (libdnnl), with --repeat rounds");
  count("--kernel-size", options->kernel_options.size, 128, "Width and height of the layer in --kernels");
  add_serve_bench_flags(*app, options->serve);
  app->add_flag("--json", options->json, "Print one JSON object instead of a Markdown table");
  return {app, [options, &global] { bench(*options, global); }};
}

}  // namespace ballast
