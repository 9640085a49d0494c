// Images through a classifier, and how often its first or its first five answers are right.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "engine/io/image_preparation.h"
#include "engine/nn/model.h"
#include "engine/runtime/runner.h"

namespace ballast {

/// Files to prepared images, on all threads of a backend.
class ImageReader {
 public:
  /// Error unless prepared images are what the model reads, or if it reads text.
  ImageReader(const Checkpoint& checkpoint, const nn::ModelFacts& facts);

  struct Result {
    Image image;        ///< prepared; empty after an error
    std::string error;  ///< one line, or empty
  };
  std::vector<Result> read(Backend& backend, std::span<const std::filesystem::path> files) const;
  /// [views, files]: each file as it is, then in views - 1 random views, mixed with each other, that depend on `seed`
  /// and the files alone.
  std::vector<Result> read_views(Backend& backend, std::span<const std::filesystem::path> files,
                                 int64_t views, uint64_t seed) const;
  /// A file's bytes prepared, on the caller's thread; any number of threads at once. Error that starts with `what`.
  Image read(std::string_view bytes, const std::string& what, const ImageLimits& limits = {}) const;
  /// Values of a prepared image's patches, as Batch wants them.
  void write_patches(const Image& prepared, std::span<float> patches) const {
    preparation_.write_patches(prepared, facts_.patch_height, facts_.patch_width, patches);
  }
  const nn::ImageFacts& facts() const { return facts_; }

 private:
  Image prepared(const Image& image, const std::string& what) const;

  ImagePreparation preparation_;
  nn::ImageFacts facts_;
};

class ImageClassifier {
 public:
  /// Loads the whole model.
  ImageClassifier(const Checkpoint& checkpoint, Backend& backend, nn::Model& model);

  struct Result {
    std::vector<float> logits;  ///< [classes]; empty after an error
    std::string error;          ///< one line that starts with the file's name, or empty
  };
  /// Files that cannot be read do not keep the others back. Reading and the model take turns on the backend's threads,
  /// so that there are never more of them than asked for.
  std::vector<Result> classify(std::span<const std::filesystem::path> files);
  /// Logits of images that reader() prepared.
  std::vector<std::vector<float>> classify(std::span<const Image* const> prepared);

  const ImageReader& reader() const { return reader_; }
  int64_t classes() const { return classes_; }

  /// Seconds that the model has taken, cutting prepared images into patches included.
  double model_seconds() const { return model_seconds_; }

  /// Files of one call that keep the threads busy and little in memory.
  static constexpr int64_t kBatch = 8;

 private:
  /// Logits of some of the prepared images in rows of their own.
  void classify(Runner& runner, std::span<const Image* const> prepared, std::span<std::vector<float>> rows);

  Backend& backend_;
  int64_t classes_;
  ImageReader reader_;
  Runner runner_;
  // Images need nothing of each other, so each thread takes some through the whole model: threads that share every op
  // wait for each other after every op.
  std::vector<std::unique_ptr<Backend>> lanes_;
  std::vector<Runner> lane_runners_;
  double model_seconds_ = 0;
};

/// Classes by descending logit, the `count` first; of equal ones the lower index leads.
std::vector<int64_t> best_classes(std::span<const float> logits, int64_t count);
/// −log softmax(logits)[label]
double negative_log_likelihood(std::span<const float> logits, int64_t label);

struct ClassificationScore {
  int64_t images = 0, right = 0, among_five = 0;
  double nll_sum = 0;

  void add(std::span<const float> logits, int64_t label);
  double top1() const { return images ? 100.0 * double(right) / double(images) : 0; }  ///< percent
  double top5() const { return images ? 100.0 * double(among_five) / double(images) : 0; }
  double nll() const { return images ? nll_sum / double(images) : 0; }
};

}  // namespace ballast
