// ballast evaluate: how often an image classifier is right.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>

#include "engine/core/process.h"
#include "engine/evaluation/classification.h"
#include "engine/evaluation/image_list.h"
#include "engine/io/output_file.h"
#include "tools/console.h"
#include "tools/loaded_model.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

struct EvaluateOptions {
  std::string model, list, root, predictions;
  int64_t limit = 0;
  bool json = false;
};

class Evaluation {
 public:
  Evaluation(const EvaluateOptions& options, const GlobalOptions& global, std::vector<ListedImage> images)
      : options_(options), images_(std::move(images)), progress_(global) {}

  void run(ImageClassifier& classifier);
  void write_predictions() const;
  void report(const LoadedModel& loaded) const;
  int64_t failed() const { return failed_; }
  int64_t images() const { return int64_t(images_.size()); }

 private:
  void add(const ListedImage& image, const ImageClassifier::Result& result);
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

  const EvaluateOptions& options_;
  std::vector<ListedImage> images_;
  Progress progress_;
  std::chrono::steady_clock::time_point start_;
  ClassificationScore score_;
  std::string predictions_ = "# image\tlabel\ttop1\tlogit1\ttop2\tlogit2\n";
  int64_t failed_ = 0;
  double seconds_ = 0, model_seconds_ = 0;
};

void Evaluation::add(const ListedImage& image, const ImageClassifier::Result& result) {
  if (!result.error.empty()) {
    progress_.finish();
    spdlog::error(result.error);
    ++failed_;
    return;
  }
  score_.add(result.logits, image.label);
  if (options_.predictions.empty()) return;
  predictions_ += fmt::format("{}\t{}", image.path, image.label);
  for (const int64_t index : best_classes(result.logits, 2))
    predictions_ += fmt::format("\t{}\t{:.6g}", index, result.logits[size_t(index)]);
  predictions_ += '\n';
}

void Evaluation::run(ImageClassifier& classifier) {
  start_ = std::chrono::steady_clock::now();
  const size_t batch = size_t(ImageClassifier::kBatch);
  for (size_t first = 0; first < images_.size(); first += batch) {
    check_interrupt();
    const size_t last = std::min(first + batch, images_.size());
    std::vector<std::filesystem::path> files;
    for (size_t i = first; i < last; ++i) files.push_back(images_[i].file);
    const std::vector<ImageClassifier::Result> results = classifier.classify(files);
    for (size_t i = first; i < last; ++i) add(images_[i], results[i - first]);
    const double left = seconds() / double(last) * double(images_.size() - last);
    progress_.update(fmt::format("[{}/{}] top-1 {:.2f} %, top-5 {:.2f} %, {} left", last, images_.size(),
                                 score_.top1(), score_.top5(), human_seconds(left)));
  }
  seconds_ = seconds();
  model_seconds_ = classifier.model_seconds();
  progress_.finish();
}

void Evaluation::write_predictions() const {
  if (options_.predictions.empty()) return;
  replace_file(options_.predictions, predictions_);
}

void Evaluation::report(const LoadedModel& loaded) const {
  const double rate = double(score_.images) / std::max(1e-9, seconds_);
  if (options_.json)
    return print_json({{"model", options_.model},
                       {"architecture", loaded.model->facts().architecture},
                       {"top1", score_.top1()},
                       {"top5", score_.top5()},
                       {"images", score_.images},
                       {"failed", failed_},
                       {"nll", score_.nll()},
                       {"images_per_second", rate},
                       {"seconds", seconds_},
                       {"model_seconds", model_seconds_},
                       {"peak_memory_bytes", peak_memory_bytes()}});
  print(fmt::format("top-1   {:.2f} %\ntop-5   {:.2f} %\nnll     {:.4f}\nimages  {}, {:.1f} a second\n",
                    score_.top1(), score_.top5(), score_.nll(), score_.images, rate));
}

void evaluate(const EvaluateOptions& options, const GlobalOptions& global) {
  const auto backend = find_backend(global.backend);
  const LoadedModel loaded = load(options.model, *backend, WithTokenizer::no);
  ImageClassifier classifier(*loaded.checkpoint, *backend, *loaded.model);
  std::vector<ListedImage> images = read_image_list(options.list, options.root, loaded.model->facts().vocab);
  if (options.limit > 0 && int64_t(images.size()) > options.limit) images.resize(size_t(options.limit));
  spdlog::info("{}, {} images, loaded in {}", backend->description(), images.size(),
               human_seconds(loaded.seconds));
  Evaluation evaluation(options, global, std::move(images));
  evaluation.run(classifier);
  evaluation.write_predictions();
  if (evaluation.failed() < evaluation.images()) evaluation.report(loaded);
  if (evaluation.failed() > 0)
    throw Error(fmt::format("{} of {} images could not be read", evaluation.failed(), evaluation.images()));
}

}  // namespace

Subcommand add_evaluate(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<EvaluateOptions>();
  CLI::App* app = root.add_subcommand("evaluate", "Measure how often an image classifier is right");
  app->add_option("-m,--model", options->model, "Folder of the model")->required()->type_name("DIR");
  app->add_option("--images", options->list, "File with a line for each image: path and class index")
      ->required()
      ->type_name("LIST");
  app->add_option("--root", options->root, "Folder that the paths start from [the list's]")->type_name("DIR");
  app->add_option("--limit", options->limit, "Images to look at, from the first; 0: all")
      ->type_name("N")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40));
  app->add_option("--predictions", options->predictions,
                  "Write a line for each image: path, label, and the two likeliest classes with their logits")
      ->type_name("FILE");
  app->add_flag("--json", options->json, "Print one JSON object");
  return {app, [options, &global] { evaluate(*options, global); }};
}

}  // namespace ballast
