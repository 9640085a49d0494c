#include "engine/evaluation/classification.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

namespace ballast {
namespace {

const nn::ImageFacts& image_facts(const Checkpoint& checkpoint, const nn::ModelFacts& facts) {
  if (!facts.image)
    throw Error(str(checkpoint.folder().string(), ": is a model of text (", facts.architecture,
                    "), expected an image classifier"));
  return *facts.image;
}

}  // namespace

ImageReader::ImageReader(const Checkpoint& checkpoint, const nn::ModelFacts& facts)
    : preparation_((image_facts(checkpoint, facts), ImagePreparation::read(checkpoint))),
      facts_(*facts.image) {
  const auto [height, width] = preparation_.prepared_size();
  if (height != 0 && (height != facts_.height || width != facts_.width))
    throw Error(str(checkpoint.folder().string(), ": images are prepared to ", height, " x ", width,
                    " pixels, but the model reads ", facts_.height, " x ", facts_.width));
}

Image ImageReader::read_one(const std::filesystem::path& file) const {
  Image image = preparation_.prepare(read_image(file));
  if (image.height != facts_.height || image.width != facts_.width)
    throw Error(str(file.string(), ": is prepared to ", image.height, " x ", image.width,
                    " pixels, but the model reads ", facts_.height, " x ", facts_.width));
  return image;
}

std::vector<ImageReader::Result> ImageReader::read(Backend& backend,
                                                   std::span<const std::filesystem::path> files) const {
  std::vector<Result> results(files.size());
  backend.parallel_for(int64_t(files.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) try {
        results[size_t(i)].image = read_one(files[size_t(i)]);
      } catch (const std::bad_alloc&) {
        results[size_t(i)].error = files[size_t(i)].string() + ": not enough memory for this image";
      } catch (const std::exception& error) {
        results[size_t(i)].error = error.what();
      }
  });
  return results;
}

std::vector<ImageClassifier::Result> ImageClassifier::classify(std::span<const std::filesystem::path> files) {
  const std::vector<ImageReader::Result> images = reader_.read(backend_, files);
  std::vector<Result> results(files.size());
  std::vector<size_t> good;
  for (size_t i = 0; i < files.size(); ++i) {
    results[i].error = images[i].error;
    if (images[i].error.empty()) good.push_back(i);
  }
  if (good.empty()) return results;
  Batch batch;
  batch.add_images(reader_.facts(), int64_t(good.size()));
  backend_.parallel_for(int64_t(good.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      reader_.write_patches(images[good[size_t(i)]].image, batch.image(i));
  });
  const auto start = std::chrono::steady_clock::now();
  const TensorView logits = runner_.run(batch);
  model_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<float>& row = results[good[i]].logits;
    row.resize(size_t(classes_));
    backend_.copy_to_host(row.data(), logits.row(int64_t(i)), classes_ * int64_t(sizeof(float)));
  }
  return results;
}

std::vector<int64_t> best_classes(std::span<const float> logits, int64_t count) {
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min<int64_t>(count, int64_t(order.size()));
  std::partial_sort(order.begin(), end, order.end(), [&](int64_t a, int64_t b) {
    return logits[size_t(a)] > logits[size_t(b)] || (logits[size_t(a)] == logits[size_t(b)] && a < b);
  });
  return {order.begin(), end};
}

double negative_log_likelihood(std::span<const float> logits, int64_t label) {
  const double top = double(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit) - top);
  return top + std::log(sum) - double(logits[size_t(label)]);
}

void ClassificationScore::add(std::span<const float> logits, int64_t label) {
  const std::vector<int64_t> best = best_classes(logits, 5);
  ++images;
  right += best.front() == label;
  among_five += std::count(best.begin(), best.end(), label);
  nll_sum += negative_log_likelihood(logits, label);
}

}  // namespace ballast
