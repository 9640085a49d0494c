// An image as a client sends it. What is decoded has the size it says, within the limits; it can be resized.
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/io/image_resize.h"
#include "kernels/check.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  constexpr ImageLimits kLimits{.side = 300, .pixels = 40'000, .passes = 20};
  Image image;
  try {
    image = decode_image({reinterpret_cast<const char*>(data), size}, "image", kLimits);
  } catch (const Error& error) {
    const std::string_view message = error.what();
    require(message.starts_with("image: ") && message.find('\n') == message.npos && message.size() < 1000);
    return 0;
  }
  require(image.width >= 1 && image.height >= 1 && image.width <= kLimits.side &&
          image.height <= kLimits.side);
  require(image.width * image.height <= kLimits.pixels);
  require(image.rgb.size() == size_t(3 * image.width * image.height));
  const Image small =
      resize(image, 5, 7, Resampling::bicubic, {.left = 1, .top = 2, .width = 3, .height = 4});
  require(small.width == 3 && small.height == 4 && small.rgb.size() == 36);
  return 0;
}
