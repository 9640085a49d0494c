#include "tools/calibration_images.h"

#include <algorithm>
#include <memory>
#include <random>

#include "engine/evaluation/classification.h"
#include "engine/evaluation/image_list.h"

namespace ballast {

std::vector<std::filesystem::path> chosen_images(const std::string& list, int64_t samples, bool exact,
                                                 uint64_t seed) {
  if (list == "self")
    throw Error("--calibration is missing: an image classifier needs a list of images to calibrate on");
  const std::vector<ListedImage> all = read_image_list(list, {}, 0);
  if (exact && int64_t(all.size()) < samples)
    throw Error(str(list, ": lists ", all.size(), " images, --samples asks for ", samples));
  // Each image is taken with the odds of what is still wanted among those that are left.
  std::mt19937_64 random(seed);
  std::vector<std::filesystem::path> chosen;
  uint64_t wanted = uint64_t(std::min<int64_t>(samples, int64_t(all.size())));
  for (size_t i = 0; i < all.size(); ++i) {
    if (random() % (all.size() - i) >= wanted) continue;
    chosen.push_back(all[i].file);
    --wanted;
  }
  return chosen;
}

CalibrationTokens calibration_from_images(const Checkpoint& checkpoint, const nn::ModelFacts& facts,
                                          Backend& backend, const std::vector<std::filesystem::path>& files,
                                          int64_t views, uint64_t seed, const std::string& source) {
  const auto reader = std::make_shared<const ImageReader>(checkpoint, facts);
  auto images =
      std::make_shared<std::vector<ImageReader::Result>>(reader->read_views(backend, files, views, seed));
  for (const ImageReader::Result& image : *images)
    if (!image.error.empty()) throw Error(image.error);
  CalibrationTokens tokens{int64_t(images->size()), facts.image->tokens, {}, source, {}};
  tokens.images = {.values = facts.image->patches() * facts.image->patch_values(),
                   .views = views,
                   .write = [reader, images](int64_t sample, std::span<float> patches) {
                     reader->write_patches((*images)[size_t(sample)].image, patches);
                   }};
  return tokens;
}

}  // namespace ballast
