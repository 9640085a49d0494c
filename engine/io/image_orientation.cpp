#include "engine/io/image_formats.h"

namespace ballast {
namespace {

constexpr uint64_t kOrientationTag = 0x0112, kShort = 3;

// Numbers of a TIFF file, which names its own byte order; 0 beyond its end.
struct Tiff {
  std::string_view bytes;
  bool big_endian;

  uint64_t number(uint64_t at, uint64_t count) const {
    if (at > bytes.size() || bytes.size() - at < count) return 0;
    uint64_t value = 0;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t byte = uint8_t(bytes[at + (big_endian ? i : count - 1 - i)]);
      value = value << 8 | byte;
    }
    return value;
  }
};

}  // namespace

int exif_orientation(std::string_view tiff) {
  if (tiff.size() < 8 || (!tiff.starts_with("II") && !tiff.starts_with("MM"))) return 1;
  const Tiff file{tiff, tiff[0] == 'M'};
  const uint64_t directory = file.number(4, 4), entries = file.number(directory, 2);
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t entry = directory + 2 + 12 * i;
    if (entry + 12 > tiff.size()) return 1;
    if (file.number(entry, 2) != kOrientationTag) continue;
    const uint64_t value = file.number(entry + 2, 2) == kShort ? file.number(entry + 8, 2) : 1;
    return value >= 1 && value <= 8 ? int(value) : 1;
  }
  return 1;
}

Image upright(Image image, int orientation) {
  if (orientation <= 1) return image;
  const int64_t w = image.width, h = image.height;
  const bool turned = orientation >= 5;
  Image out{turned ? h : w, turned ? w : h, std::vector<uint8_t>(image.rgb.size())};
  // Which stored column and row the pixel (x, y) of the upright image comes from.
  const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  for (int64_t y = 0; y < out.height; ++y)
    for (int64_t x = 0; x < out.width; ++x) {
      const int64_t column = turned ? y : x, row = turned ? x : y;
      const uint8_t* from = image.pixel(mirror_x ? w - 1 - column : column, mirror_y ? h - 1 - row : row);
      uint8_t* to = out.pixel(x, y);
      for (int c = 0; c < 3; ++c) to[c] = from[c];
    }
  return out;
}

}  // namespace ballast
