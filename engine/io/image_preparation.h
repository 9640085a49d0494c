// From an image file's pixels to a model's patches, as preprocessor_config.json says (Hugging Face's image processors of
// ViT and DeiT) or, without it, config.json's pretrained_cfg (timm).
//
//   resize so that the shorter side is size.shortest_edge, or to size.height x size.width; a plain number is a square
//   crop crop_size out of the middle, from floor((side − crop) / 2) on; what sticks out is black
//   value = (pixel · rescale_factor − image_mean) / image_std
#pragma once

#include <span>

#include "engine/io/checkpoint.h"
#include "engine/io/image_resize.h"

namespace ballast {

class ImagePreparation {
 public:
  /// Error when a folder says nothing, or something that is not known, about its images.
  static ImagePreparation read(const Checkpoint& checkpoint);

  /// Resized and cropped, 8 bits still.
  Image prepare(const Image& image) const;
  /// Values of all patches of a prepared image, row by row from the top left, each [3, patch_height, patch_width].
  void write_patches(const Image& prepared, int64_t patch_height, int64_t patch_width,
                     std::span<float> patches) const;
  /// Size of every prepared image, or 0 x 0 where it depends on the image.
  std::pair<int64_t, int64_t> prepared_size() const;

 private:
  void read_hugging_face(const nlohmann::json& json, const std::string& file);
  void read_timm(const nlohmann::json& json, const std::string& file);
  void fill_values(const nlohmann::json& json, const std::string& file, const char* mean_key,
                   const char* std_key, double scale, bool normalize);

  int64_t shortest_edge_ = 0;       ///< 0: resized to width_ x height_
  int64_t width_ = 0, height_ = 0;  ///< 0 with shortest_edge_ 0: not resized
  int64_t crop_width_ = 0, crop_height_ = 0;  ///< 0: not cropped
  bool round_crop_ = false;  ///< timm: the crop starts at round((side − crop) / 2), halves to even
  Resampling filter_ = Resampling::bilinear;
  float values_[3][256] = {};  ///< value of each channel's pixel
};

}  // namespace ballast
