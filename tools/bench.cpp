// How fast a model runs here, beside how fast memory can be read.
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "tools/bench_linear.h"
#include "tools/bench_model.h"
#include "tools/bench_quantizer.h"
#include "tools/bench_serve.h"
#include "tools/console.h"
#include "tools/flags.h"
#include "tools/loaded_model.h"
#include "tools/random_model.h"
#include "tools/subcommand.h"
#include "tools/version.h"

namespace ballast {
namespace {

struct BenchOptions {
  std::string model;
  RandomModel random;  ///< shape empty: not asked for
  std::string save, activations = "f32";
  ModelBenchOptions tests;
  LinearBenchOptions linear;
  QuantizerBenchOptions quantizer;
  std::string kernels;  ///< empty: none
  int64_t repeat = 5;
  bool force = false, json = false, csv = false;
  ServeBenchOptions serve;
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
  if (options.model.empty() && options.random.shape.empty() && options.kernels.empty())
    throw Error("bench needs -m DIR, --random-model SHAPE or --kernels");
  if (!options.save.empty() && options.random.shape.empty())
    throw Error("--save makes no sense without --random-model: nothing was made that could be saved");
  if (!options.random.shape.empty()) options.random.check();
  if (options.json && options.csv) throw Error("--json and --csv make no sense together");
  options.tests.check();
  if (!options.kernels.empty()) options.linear.check();
}

void bench_folder(const std::string& folder, const BenchOptions& options, const GlobalOptions& global,
                  Backend& backend, nlohmann::json& object) {
  const LoadedModel model = load(folder, backend, WithTokenizer::no);
  if (model.model->facts().image)
    throw Error(folder + ": takes images and no text; `ballast evaluate` tells its images a second");
  Progress progress(global);
  const ModelBench result = bench_model(backend, *model.model, options.tests,
                                        [&](const std::string& line) { progress.update(line); });
  progress.finish();
  object["load_seconds"] = model.seconds;
  result.add_to(object);
  if (options.csv) {
    print(result.csv());
  } else if (!options.json) {
    print(fmt::format("{}; loaded in {:.2f} s. {}", backend.description(), model.seconds, result.markdown()));
  }
}

void bench_kernels(const BenchOptions& options, const GlobalOptions& global, Backend& backend,
                   nlohmann::json& object) {
  Progress progress(global);
  const auto show = [&](const std::string& line) { progress.update(line); };
  std::string text;
  if (options.kernels != "quantizer") {
    LinearBenchOptions linear = options.linear;
    linear.repeat = options.repeat;
    linear.threads = global.backend.threads;
    const std::vector<LinearRow> rows = bench_linear(backend, linear, show);
    for (const LinearRow& row : rows) object["linear"].push_back(row.json());
    text += "\n" + linear_table(rows);
  }
  if (options.kernels != "linear") {
    QuantizerBenchOptions quantizer = options.quantizer;
    quantizer.repeat = options.repeat;
    quantizer.threads = global.backend.threads;
    const std::vector<QuantizerRow> rows = bench_quantizer(backend, quantizer, show);
    for (const QuantizerRow& row : rows) object["kernels"].push_back(row.json());
    text += "\n" + quantizer_table(rows);
  }
  progress.finish();
  if (!options.json) print(backend.description() + "\n" + text);
}

void save(const BenchOptions& options, Backend& backend) {
  const uint64_t bytes =
      write_random_model(backend, options.random, options.save, {.overwrite = options.force});
  if (options.json) return print_json({{"output", options.save}, {"tensor_bytes", bytes}});
  print(fmt::format("{}: {} with random weights, {}\n", options.save, options.random.shape,
                    human_bytes(double(bytes))));
}

void bench(BenchOptions options, const GlobalOptions& global) {
  if (!options.serve.url.empty()) return bench_serve(options.serve, options.json);
  options.tests.repeat = options.repeat;
  check(options);
  const auto backend = find_backend(global.backend_with(options.activations));
  if (!options.kernels.empty() && backend->device() != Device::cpu)
    throw Error("--kernels measures kernels of the CPU; use --device cpu");
  if (!options.save.empty()) return save(options, *backend);
  nlohmann::json object = {{"device", backend->description()},
                           {"version", version()},
                           {"build", build_name()},
                           {"machine", machine_facts()},
                           {"repeat", options.repeat}};
  if (!options.random.shape.empty()) {
    const TemporaryFolder folder;
    write_random_model(*backend, options.random, folder.path(), {.durable = false});
    bench_folder(folder.path(), options, global, *backend, object);
  } else if (!options.model.empty()) {
    bench_folder(options.model, options, global, *backend, object);
  }
  if (!options.kernels.empty()) bench_kernels(options, global, *backend, object);
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
  const auto list = [&](const char* name, auto& values, const char* description) {
    return app->add_option(name, values, description)
        ->type_name("N,N")
        ->delimiter(',')
        ->capture_default_str();
  };
  list("--prompt", options->tests.prompt, "Tokens of the prompt tests, run in one pass; 0: none");
  list("--generate", options->tests.generate, "Tokens of the generation tests, one pass each; 0: none");
  list("--depth", options->tests.depth, "Tokens already in the cache when a test begins");
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
  app->add_option(
         "--head-bits", random.head_bits,
         "Of the random model's head, which is the embedding too; 0: 8 where the blocks are quantized")
      ->type_name("N")
      ->capture_default_str();
  app->add_option(
         "--relu-zeros", random.relu_zeros,
         "Share of exact zeros in fc2's input that a shift of the random fc1's bias aims at; 0: no shift, "
         "about a half")
      ->type_name("X")
      ->capture_default_str();
  app->add_option("--seed", random.seed, "Of the random model")->type_name("N")->capture_default_str();
  app->add_flag("--force", options->force, "Let --save overwrite a checkpoint");
  app->add_option("--kernels", options->kernels,
                  "Rates of single kernels, with --repeat rounds: linear layers, the quantizer's heavy steps "
                  "(both beside oneDNN where libdnnl is found), or all")
      ->type_name("linear|quantizer|all")
      ->expected(0, 1)
      ->default_str("all")
      ->check(CLI::IsMember({"linear", "quantizer", "all"}));
  list("--kernel-shapes", options->linear.shapes, "Models whose layers --kernels linear measures")
      ->type_name("SHAPE,SHAPE");
  list("--kernel-bits", options->linear.bits, "Their weights: 16, 8, 4, 3, 2");
  list("--kernel-groups", options->linear.groups, "Their columns that share a scale; 0: the whole row");
  list("--kernel-tokens", options->linear.tokens, "Tokens of a call");
  count("--kernel-size", options->quantizer.size, 128,
        "Width and height of the layer in --kernels quantizer");
  add_activations_flag(*app, options->activations);
  add_cache_type_flag(*app, options->tests.cache_type);
  add_serve_bench_flags(*app, options->serve);
  app->add_flag("--json", options->json, "Print one JSON object instead of a Markdown table");
  app->add_flag("--csv", options->csv, "Print the tests of a model as comma-separated values");
  return {app, [options, &global] { bench(*options, global); }};
}

}  // namespace ballast
