// ballast classify: what is in some images.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cmath>

#include "engine/evaluation/classification.h"
#include "tools/classes.h"
#include "tools/console.h"
#include "tools/loaded_model.h"
#include "tools/subcommand.h"

namespace ballast {
namespace {

struct ClassifyOptions {
  std::string model, labels;
  std::vector<std::string> images;
  int64_t top = 5;
  bool json = false;
};

nlohmann::json answers(const std::vector<float>& logits, const std::vector<std::string>& names, int64_t top) {
  nlohmann::json list = nlohmann::json::array();
  for (const int64_t index : best_classes(logits, top))
    list.push_back({{"class", index},
                    {"label", names[size_t(index)]},
                    {"probability", std::exp(-negative_log_likelihood(logits, index))},
                    {"logit", logits[size_t(index)]}});
  return list;
}

std::string text_of(const nlohmann::json& entry) {
  std::string text = entry.at("image").get<std::string>() + "\n";
  for (const nlohmann::json& answer : entry.at("predictions"))
    text += fmt::format("  {:6.2f} %  {:>4}  {}\n", 100 * answer.at("probability").get<double>(),
                        answer.at("class").get<int64_t>(), answer.at("label").get<std::string>());
  return text;
}

void classify(const ClassifyOptions& options, const GlobalOptions& global) {
  const auto backend = find_backend(global.backend);
  const LoadedModel loaded = load(options.model, *backend, WithTokenizer::no);
  ImageClassifier classifier(*loaded.checkpoint, *backend, *loaded.model);
  const std::vector<std::string> names =
      class_names(*loaded.checkpoint, loaded.model->facts().vocab, options.labels);
  nlohmann::json entries = nlohmann::json::array();
  int64_t failed = 0;
  const size_t batch = size_t(ImageClassifier::kBatch);
  for (size_t first = 0; first < options.images.size(); first += batch) {
    check_interrupt();
    const size_t count = std::min(batch, options.images.size() - first);
    const std::vector<std::filesystem::path> files(options.images.begin() + std::ptrdiff_t(first),
                                                   options.images.begin() + std::ptrdiff_t(first + count));
    const std::vector<ImageClassifier::Result> results = classifier.classify(files);
    for (size_t i = 0; i < count; ++i) {
      nlohmann::json entry = {{"image", options.images[first + i]}};
      if (results[i].error.empty()) {
        entry["predictions"] = answers(results[i].logits, names, options.top);
        if (!options.json) print(text_of(entry));
      } else {
        spdlog::error(results[i].error);
        entry["error"] = results[i].error;
        ++failed;
      }
      entries.push_back(std::move(entry));
    }
  }
  if (options.json) print_json({{"model", options.model}, {"images", entries}});
  if (failed > 0)
    throw Error(fmt::format("{} of {} images could not be read", failed, options.images.size()));
}

}  // namespace

Subcommand add_classify(CLI::App& root, const GlobalOptions& global) {
  auto options = std::make_shared<ClassifyOptions>();
  CLI::App* app = root.add_subcommand("classify", "Say what is in JPEG and PNG images");
  app->add_option("-m,--model", options->model, "Folder of the model")->required()->type_name("DIR");
  app->add_option("--top", options->top, "Likeliest classes to show")
      ->type_name("K")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 20))
      ->capture_default_str();
  app->add_option("--labels", options->labels, "File with the name of one class a line [those of the model]")
      ->type_name("FILE");
  app->add_flag("--json", options->json, "Print one JSON object");
  app->add_option("images", options->images, "Files to look at")->required()->type_name("IMAGE");
  return {app, [options, &global] { classify(*options, global); }};
}

}  // namespace ballast
