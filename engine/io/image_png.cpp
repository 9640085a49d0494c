// PNG through libpng. Its errors leave by longjmp: no object with a destructor lives in a function that it jumps out of.
#include <png.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "engine/io/image_formats.h"
#include "kernels/check.h"

namespace ballast {
namespace {

struct Decoder {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::string_view rest;
  char message[256] = {};

  explicit Decoder(std::string_view bytes) : rest(bytes) {
    png = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, this,
        [](png_structp reader, png_const_charp reason) {
          Decoder* self = static_cast<Decoder*>(png_get_error_ptr(reader));
          std::snprintf(self->message, sizeof self->message, "%s", reason);
          png_longjmp(reader, 1);
        },
        [](png_structp, png_const_charp) {});
    if (png) info = png_create_info_struct(png);
    if (!info) {
      png_destroy_read_struct(&png, nullptr, nullptr);
      throw std::bad_alloc();
    }
  }
  ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }

  bool read_header();
  bool read_rows(png_bytepp rows);
};

bool Decoder::read_header() {
  if (setjmp(png_jmpbuf(png))) return false;
  png_set_read_fn(png, this, [](png_structp reader, png_bytep out, size_t count) {
    Decoder* self = static_cast<Decoder*>(png_get_io_ptr(reader));
    if (self->rest.size() < count) png_error(reader, "the file ends too early");
    std::memcpy(out, self->rest.data(), count);
    self->rest.remove_prefix(count);
  });
  // Sizes are judged by check_image_size, whose message names them.
  png_set_user_limits(png, 0x7FFFFFFF, 0x7FFFFFFF);
  png_set_chunk_malloc_max(png, 8 << 20);
  png_set_chunk_cache_max(png, 128);
  png_read_info(png, info);
  return true;
}

// `rows` are null the first time, when only the transformations are set up.
bool Decoder::read_rows(png_bytepp rows) {
  if (setjmp(png_jmpbuf(png))) return false;
  if (rows) {
    png_read_image(png, rows);
    png_read_end(png, info);
    return true;
  }
  const int color = png_get_color_type(png, info);
  if (png_get_bit_depth(png, info) == 16) png_set_strip_16(png);
  if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (color == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png);
  if (!(color & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  return true;
}

int orientation_of(png_structp png, png_infop info) {
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(png, info, &size, &exif) == 0 || !exif) return 1;
  return exif_orientation({reinterpret_cast<const char*>(exif), size});
}

}  // namespace

bool is_png(std::string_view bytes) {
  return bytes.starts_with(std::string_view("\x89PNG\r\n\x1A\n", 8));
}

StoredImage decode_png(std::string_view bytes, const ImageLimits& limits) {
  Decoder decoder(bytes);
  const auto check = [&](bool good) {
    if (!good) throw Error(str("is a damaged or unsupported PNG image: ", decoder.message));
  };
  check(decoder.read_header());
  const int64_t width = png_get_image_width(decoder.png, decoder.info);
  const int64_t height = png_get_image_height(decoder.png, decoder.info);
  check_image_size(width, height, limits);
  check(decoder.read_rows(nullptr));
  CHECK(int64_t(png_get_rowbytes(decoder.png, decoder.info)) == 3 * width);
  StoredImage stored{{width, height, std::vector<uint8_t>(size_t(3 * width * height))}};
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < height; ++y) rows.push_back(stored.image.pixel(0, y));
  check(decoder.read_rows(rows.data()));
  stored.orientation = orientation_of(decoder.png, decoder.info);
  return stored;
}

}  // namespace ballast
