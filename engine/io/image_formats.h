// The decoders behind image.h.
#pragma once

#include "engine/io/image.h"

namespace ballast {

/// What a file holds, before its orientation is applied.
struct StoredImage {
  Image image;
  int orientation = 1;  ///< EXIF's, 1 to 8
};

bool is_jpeg(std::string_view bytes);
bool is_png(std::string_view bytes);
/// Error without `what`, which the caller puts in front.
StoredImage decode_jpeg(std::string_view bytes, const ImageLimits& limits);
StoredImage decode_png(std::string_view bytes, const ImageLimits& limits);

/// Error when a width and height out of a file's header exceed a limit.
void check_image_size(int64_t width, int64_t height, const ImageLimits& limits);

/// Orientation in an EXIF block (a TIFF file); 1 when it has none or is damaged.
int exif_orientation(std::string_view tiff);
/// The image turned and mirrored upright.
Image upright(Image image, int orientation);

}  // namespace ballast
