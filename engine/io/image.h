// Images from untrusted files: JPEG and PNG, told apart by their content, as the pixels that Pillow's
// `ImageOps.exif_transpose(Image.open(file)).convert("RGB")` gives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace ballast {

/// [height, width, 3], red, green and blue, 0 to 255.
struct Image {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;

  const uint8_t* pixel(int64_t x, int64_t y) const { return rgb.data() + 3 * (y * width + x); }
  uint8_t* pixel(int64_t x, int64_t y) { return rgb.data() + 3 * (y * width + x); }
};

struct ImageLimits {
  int64_t side = 65500;         ///< pixels of a side, the most that JPEG can have
  int64_t pixels = 89'478'485;  ///< in all, where Pillow warns: a quarter of a gigabyte of RGB
  int64_t bytes = 256 << 20;    ///< of the file
  int passes = 500;             ///< over a progressive JPEG: each costs as much as the whole image
};

/// Throws Error, one line that starts with `what`, when the bytes are no JPEG or PNG, are cut short or damaged, or
/// exceed a limit. Grey and CMYK become RGB, palettes are looked up, 16 bits lose the lower 8, alpha is dropped.
/// The EXIF orientation is applied.
Image decode_image(std::string_view bytes, const std::string& what, const ImageLimits& limits = {});
/// The same from a file.
Image read_image(const std::filesystem::path& file, const ImageLimits& limits = {});

}  // namespace ballast
