// Images made for tests.
#pragma once

#include "engine/io/image.h"

namespace ballast::test {

/// An image whose red is the column and whose green is the row.
inline Image ramp(int64_t width, int64_t height) {
  Image image{width, height, std::vector<uint8_t>(size_t(3 * width * height))};
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      image.pixel(x, y)[0] = uint8_t(x);
      image.pixel(x, y)[1] = uint8_t(y);
    }
  return image;
}

}  // namespace ballast::test
