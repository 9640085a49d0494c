#include "engine/evaluation/classification.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

#include "engine/io/image_view.h"

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

Image ImageReader::prepared(const Image& image, const std::string& what) const {
  Image result = preparation_.prepare(image);
  if (result.height != facts_.height || result.width != facts_.width)
    throw Error(str(what, ": is prepared to ", result.height, " x ", result.width,
                    " pixels, but the model reads ", facts_.height, " x ", facts_.width));
  return result;
}

Image ImageReader::read(std::string_view bytes, const std::string& what, const ImageLimits& limits) const {
  return prepared(decode_image(bytes, what, limits), what);
}

std::vector<ImageReader::Result> ImageReader::read(Backend& backend,
                                                   std::span<const std::filesystem::path> files) const {
  return read_views(backend, files, 1, 0);
}

std::vector<ImageReader::Result> ImageReader::read_views(Backend& backend,
                                                         std::span<const std::filesystem::path> files,
                                                         int64_t views, uint64_t seed) const {
  std::vector<Result> results(files.size() * size_t(views));
  backend.parallel_for(int64_t(files.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::string name = files[size_t(i)].string();
      Result* result = &results[size_t(i)];
      try {
        const Image whole = read_image(name);
        result->image = prepared(whole, name);
        std::seed_seq seeds{uint32_t(seed), uint32_t(seed >> 32), uint32_t(i)};
        std::mt19937_64 random(seeds);
        for (int64_t view = 1; view < views; ++view)
          (result += files.size())->image = prepared(random_view(whole, random), name);
      } catch (const std::bad_alloc&) {
        result->error = name + ": not enough memory for this image";
      } catch (const std::exception& error) {
        result->error = error.what();
      }
    }
  });
  // Each view but the image as it is gets a part of another one.
  for (int64_t view = 1; view < views && files.size() > 1; ++view) {
    const std::span<Result> all = std::span(results).subspan(size_t(view) * files.size(), files.size());
    const std::vector<Result> unmixed(all.begin(), all.end());
    std::seed_seq seeds{uint32_t(seed), uint32_t(seed >> 32), uint32_t(view), 1u};
    std::mt19937_64 random(seeds);
    for (size_t i = 0; i < all.size(); ++i) {
      const Result& other = unmixed[(i + 1 + random() % (all.size() - 1)) % all.size()];
      if (all[i].image.rgb.size() == other.image.rgb.size()) mix_in(other.image, all[i].image, random);
    }
  }
  return results;
}

ImageClassifier::ImageClassifier(const Checkpoint& checkpoint, Backend& backend, nn::Model& model)
    : backend_(backend),
      classes_(model.facts().vocab),
      reader_(checkpoint, model.facts()),
      runner_(backend, model),
      lanes_(backend.lanes()) {
  model.load_all();
  for (const auto& lane : lanes_) lane_runners_.emplace_back(*lane, model);
}

std::vector<ImageClassifier::Result> ImageClassifier::classify(std::span<const std::filesystem::path> files) {
  const std::vector<ImageReader::Result> images = reader_.read(backend_, files);
  std::vector<Result> results(files.size());
  std::vector<const Image*> good;
  for (size_t i = 0; i < files.size(); ++i) {
    results[i].error = images[i].error;
    if (images[i].error.empty()) good.push_back(&images[i].image);
  }
  std::vector<std::vector<float>> logits = classify(good);
  size_t next = 0;
  for (Result& result : results)
    if (result.error.empty()) result.logits = std::move(logits[next++]);
  return results;
}

std::vector<std::vector<float>> ImageClassifier::classify(std::span<const Image* const> prepared) {
  std::vector<std::vector<float>> rows(prepared.size());
  const auto start = std::chrono::steady_clock::now();
  const int64_t count = int64_t(prepared.size()), lanes = std::min(int64_t(lanes_.size()), count);
  if (lanes < 2) {
    classify(runner_, prepared, rows);
  } else {
    backend_.parallel_for(lanes, [&](int64_t begin, int64_t end) {
      // One image at a time: its activations stay in the cache.
      for (int64_t lane = begin; lane < end; ++lane)
        for (auto i = size_t(count * lane / lanes); i < size_t(count * (lane + 1) / lanes); ++i)
          classify(lane_runners_[size_t(lane)], prepared.subspan(i, 1), std::span(rows).subspan(i, 1));
    });
  }
  model_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return rows;
}

void ImageClassifier::classify(Runner& runner, std::span<const Image* const> prepared,
                               std::span<std::vector<float>> rows) {
  if (prepared.empty()) return;
  Batch batch;
  batch.add_images(reader_.facts(), int64_t(prepared.size()));
  for (size_t i = 0; i < prepared.size(); ++i) reader_.write_patches(*prepared[i], batch.image(int64_t(i)));
  const TensorView logits = runner.run(batch);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].resize(size_t(classes_));
    backend_.copy_to_host(rows[i].data(), logits.row(int64_t(i)), classes_ * int64_t(sizeof(float)));
  }
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
