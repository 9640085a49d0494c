#include "engine/io/image_preparation.h"

#include <algorithm>
#include <cmath>

#include "engine/io/json.h"

namespace ballast {
namespace {

constexpr int64_t kMaxSide = 1 << 14;
constexpr const char* kFile = "preprocessor_config.json";

struct Size {
  int64_t shortest_edge = 0, height = 0, width = 0;
};

// "size" or "crop_size": a number is a square, as these processors read it.
Size size_from(const nlohmann::json& json, const char* key, const std::string& file, int64_t fallback) {
  const nlohmann::json* value = json_find(json, key, file);
  if (!value || !value->is_object()) {
    const int64_t side = json_int(json, key, file, 1, kMaxSide, fallback);
    return {.height = side, .width = side};
  }
  const std::string what = str(file, ": ", key);
  if (json_find(*value, "height", what) && json_find(*value, "width", what) && value->size() == 2)
    return {.height = json_int(*value, "height", what, 1, kMaxSide),
            .width = json_int(*value, "width", what, 1, kMaxSide)};
  if (json_find(*value, "shortest_edge", what) && value->size() == 1)
    return {.shortest_edge = json_int(*value, "shortest_edge", what, 1, kMaxSide)};
  throw Error(what + ": expected a number, height and width, or shortest_edge");
}

bool is_deit(const std::string& type, const std::string& file) {
  if (type.starts_with("DeiT")) return true;
  if (type.empty() || type.starts_with("ViT")) return false;
  throw Error(str(file, ": the image processor is ", shown(type), ", expected one of ViT or DeiT"));
}

std::vector<double> three_numbers(const nlohmann::json& json, const char* key, const std::string& file,
                                  bool positive) {
  const nlohmann::json* value = json_find(json, key, file);
  if (!value) return {0.5, 0.5, 0.5};
  std::vector<double> numbers;
  if (value->is_array() && value->size() == 3)
    for (const nlohmann::json& number : *value)
      if (number.is_number() && std::fabs(number.get<double>()) < 1e6 && (!positive || number.get<double>() > 0))
        numbers.push_back(number.get<double>());
  if (numbers.size() != 3)
    throw Error(str(file, ": ", key, " is ", shown_json(*value), ", expected three ",
                    positive ? "positive " : "", "numbers"));
  return numbers;
}

}  // namespace

ImagePreparation ImagePreparation::read(const Checkpoint& checkpoint) {
  ImagePreparation preparation;
  const std::filesystem::path path = checkpoint.folder() / kFile;
  const std::string config = (checkpoint.folder() / "config.json").string();
  if (std::filesystem::exists(path)) {
    const std::string file = path.string();
    preparation.read_hugging_face(parse_json(read_file(path, 1 << 20), file), file);
  } else if (const nlohmann::json* timm = json_find(checkpoint.config(), "pretrained_cfg", config)) {
    preparation.read_timm(*timm, config + ": pretrained_cfg");
  } else {
    throw Error(str(checkpoint.folder().string(), ": has no ", kFile, ", which says how images are prepared"));
  }
  return preparation;
}

void ImagePreparation::read_hugging_face(const nlohmann::json& json, const std::string& file) {
  const std::string older = json_string(json, "feature_extractor_type", file, "");
  const bool deit = is_deit(json_string(json, "image_processor_type", file, older), file);
  if (json_bool(json, "do_resize", file, true)) {
    const Size size = size_from(json, "size", file, deit ? 256 : 224);
    shortest_edge_ = size.shortest_edge;
    height_ = size.height;
    width_ = size.width;
  }
  const int64_t filter = json_int(json, "resample", file, 0, 5, deit ? 3 : 2);
  if (filter < 1 || filter > 3)
    throw Error(str(file, ": resample is ", filter, ", expected 1 (lanczos), 2 (bilinear) or 3 (bicubic)"));
  filter_ = Resampling(filter);
  if (json_bool(json, "do_center_crop", file, deit)) {
    const Size size = size_from(json, "crop_size", file, 224);
    if (size.shortest_edge) throw Error(file + ": crop_size: expected a number, or height and width");
    crop_height_ = size.height;
    crop_width_ = size.width;
  }
  const double scale = json_number(json, "rescale_factor", file, 0, 1e6, 1.0 / 255);
  fill_values(json, file, "image_mean", "image_std", json_bool(json, "do_rescale", file, true) ? scale : 1,
              json_bool(json, "do_normalize", file, true));
}

void ImagePreparation::read_timm(const nlohmann::json& json, const std::string& file) {
  const nlohmann::json& size = json_array(json, "input_size", file);
  const auto side = [](const nlohmann::json& value) {
    return value.is_number_integer() && value >= 1 && value <= kMaxSide;
  };
  if (size.size() != 3 || size[0] != 3 || !side(size[1]) || !side(size[2]) || size[1] != size[2])
    throw Error(str(file, ": input_size is ", size.dump(), ", expected 3 channels and a square"));
  crop_height_ = crop_width_ = size[1].get<int64_t>();
  if (const std::string mode = json_string(json, "crop_mode", file, "center"); mode != "center")
    throw Error(str(file, ": crop_mode is ", shown(mode), ", expected center"));
  const double share = json_number(json, "crop_pct", file, 0.01, 1, 0.875);
  shortest_edge_ = int64_t(double(crop_height_) / share);
  round_crop_ = true;
  const std::string filter = json_string(json, "interpolation", file, "bicubic");
  if (filter != "bicubic" && filter != "bilinear")
    throw Error(str(file, ": interpolation is ", shown(filter), ", expected bicubic or bilinear"));
  filter_ = filter == "bicubic" ? Resampling::bicubic : Resampling::bilinear;
  fill_values(json, file, "mean", "std", 1.0 / 255, true);
}

void ImagePreparation::fill_values(const nlohmann::json& json, const std::string& file, const char* mean_key,
                                   const char* std_key, double scale, bool normalize) {
  const std::vector<double> mean = three_numbers(json, mean_key, file, false);
  const std::vector<double> std = three_numbers(json, std_key, file, true);
  for (size_t c = 0; c < 3; ++c)
    for (int pixel = 0; pixel < 256; ++pixel) {
      const float value = float(double(pixel) * scale);
      values_[c][pixel] = normalize ? (value - float(mean[c])) / float(std[c]) : value;
    }
}

std::pair<int64_t, int64_t> ImagePreparation::prepared_size() const {
  if (crop_height_) return {crop_height_, crop_width_};
  return shortest_edge_ ? std::pair<int64_t, int64_t>(0, 0) : std::pair(height_, width_);
}

Image ImagePreparation::prepare(const Image& image) const {
  int64_t width = width_ ? width_ : image.width, height = height_ ? height_ : image.height;
  if (shortest_edge_) {
    // The longer side in floating point, cut, as the processors compute it.
    const double shorter = double(std::min(image.width, image.height));
    width = image.width <= image.height ? shortest_edge_
                                        : int64_t(double(shortest_edge_ * image.width) / shorter);
    height = image.width <= image.height ? int64_t(double(shortest_edge_ * image.height) / shorter)
                                         : shortest_edge_;
  }
  const int64_t out_width = crop_width_ ? crop_width_ : width, out_height = crop_height_ ? crop_height_ : height;
  const auto start = [&](int64_t side, int64_t crop) {
    if (round_crop_ && side > crop) return int64_t(std::nearbyint(double(side - crop) / 2));
    return side >= crop ? (side - crop) / 2 : -((crop - side + 1) / 2);
  };
  const int64_t left = start(width, out_width), top = start(height, out_height);
  const Window window{std::max<int64_t>(0, left), std::max<int64_t>(0, top), std::min(width, out_width),
                      std::min(height, out_height)};
  const Image part = resize(image, width, height, filter_, window);
  if (part.width == out_width && part.height == out_height) return part;
  Image padded{out_width, out_height, std::vector<uint8_t>(size_t(3 * out_width * out_height))};
  for (int64_t y = 0; y < part.height; ++y)
    std::copy_n(part.pixel(0, y), 3 * part.width,
                padded.pixel(std::max<int64_t>(0, -left), y + std::max<int64_t>(0, -top)));
  return padded;
}

void ImagePreparation::write_patches(const Image& prepared, int64_t patch_height, int64_t patch_width,
                                     std::span<float> patches) const {
  CHECK(int64_t(patches.size()) == 3 * prepared.width * prepared.height &&
        prepared.height % patch_height == 0 && prepared.width % patch_width == 0);
  float* out = patches.data();
  for (int64_t top = 0; top < prepared.height; top += patch_height)
    for (int64_t left = 0; left < prepared.width; left += patch_width)
      for (int c = 0; c < 3; ++c)
        for (int64_t y = top; y < top + patch_height; ++y)
          for (int64_t x = left; x < left + patch_width; ++x) *out++ = values_[c][prepared.pixel(x, y)[c]];
}

}  // namespace ballast
