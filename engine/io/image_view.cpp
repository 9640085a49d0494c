#include "engine/io/image_view.h"

#include <algorithm>
#include <cmath>

namespace ballast {
namespace {

// std::uniform_real_distribution differs between libraries; this does not.
double uniform(std::mt19937_64& random, double low, double high) {
  return low + (high - low) * double(random() >> 11) * 0x1p-53;
}

}  // namespace

Image random_view(const Image& image, std::mt19937_64& random) {
  const double area = double(image.width) * double(image.height) * uniform(random, kLeastArea, 1);
  const double aspect = std::exp(uniform(random, std::log(3.0 / 4), std::log(4.0 / 3)));
  const auto side = [](double length, int64_t whole) {
    return std::clamp<int64_t>(std::llround(length), 1, whole);
  };
  Image view;
  view.width = side(std::sqrt(area * aspect), image.width);
  view.height = side(std::sqrt(area / aspect), image.height);
  const int64_t left = int64_t(uniform(random, 0, double(image.width - view.width + 1)));
  const int64_t top = int64_t(uniform(random, 0, double(image.height - view.height + 1)));
  const bool mirrored = random() >> 63;
  view.rgb.resize(size_t(3 * view.width * view.height));
  for (int64_t y = 0; y < view.height; ++y)
    for (int64_t x = 0; x < view.width; ++x)
      std::copy_n(image.pixel(left + (mirrored ? view.width - 1 - x : x), top + y), 3, view.pixel(x, y));
  return view;
}

void mix_in(const Image& other, Image& image, std::mt19937_64& random) {
  const double side = std::sqrt(uniform(random, 0, 1));
  const int64_t width = int64_t(side * double(image.width)), height = int64_t(side * double(image.height));
  const int64_t left = int64_t(uniform(random, 0, double(image.width - width + 1)));
  const int64_t top = int64_t(uniform(random, 0, double(image.height - height + 1)));
  for (int64_t y = top; y < top + height; ++y)
    std::copy_n(other.pixel(left, y), 3 * width, image.pixel(left, y));
}

}  // namespace ballast
