#include "engine/io/image.h"

#include "engine/io/image_formats.h"
#include "engine/io/json.h"

namespace ballast {

void check_image_size(int64_t width, int64_t height, const ImageLimits& limits) {
  if (width < 1 || height < 1) throw Error(str("has a size of ", width, " x ", height));
  if (width > limits.side || height > limits.side)
    throw Error(str("is ", width, " x ", height, " pixels, at most ", limits.side, " a side are read"));
  if (width > limits.pixels / height)
    throw Error(str("is ", width, " x ", height, " pixels, at most ", limits.pixels, " in all are read"));
}

Image decode_image(std::string_view bytes, const std::string& what, const ImageLimits& limits) {
  try {
    if (bytes.empty()) throw Error("is empty");
    if (!is_jpeg(bytes) && !is_png(bytes)) throw Error("is neither a JPEG nor a PNG image");
    StoredImage stored = is_jpeg(bytes) ? decode_jpeg(bytes, limits) : decode_png(bytes, limits);
    return upright(std::move(stored.image), stored.orientation);
  } catch (const Error& error) {
    throw Error(what + ": " + error.what());
  }
}

Image read_image(const std::filesystem::path& file, const ImageLimits& limits) {
  return decode_image(read_file(file, uint64_t(limits.bytes)), file.string(), limits);
}

}  // namespace ballast
