// JPEG through libjpeg-turbo. Its errors leave by longjmp: no object with a destructor lives in a function that it
// jumps out of.
#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <optional>

#include <jpeglib.h>  // needs the two before it
#include <jerror.h>

#include "engine/io/image_formats.h"
#include "kernels/check.h"

namespace ballast {
namespace {

struct Decoder {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf leave;
  char message[JMSG_LENGTH_MAX] = {};
  int passes = 0;  ///< allowed

  Decoder() {
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr common) { fail(common); };
    errors.emit_message = [](j_common_ptr common, int level) {
      // Where the file ends too early the library goes on with grey. Other oddities are as harmless as elsewhere.
      if (level < 0 && (common->err->msg_code == JWRN_JPEG_EOF || common->err->msg_code == JWRN_HIT_MARKER))
        fail(common);
    };
    errors.output_message = [](j_common_ptr) {};
    jpeg.client_data = this;
  }
  ~Decoder() { jpeg_destroy_decompress(&jpeg); }

  [[noreturn]] static void fail(j_common_ptr common) {
    Decoder* self = static_cast<Decoder*>(common->client_data);
    common->err->format_message(common, self->message);
    std::longjmp(self->leave, 1);
  }
  [[noreturn]] void fail(const char* reason) {
    std::snprintf(message, sizeof message, "%s", reason);
    std::longjmp(leave, 1);
  }

  bool read_header(std::string_view bytes);
  bool start();
  bool read_row(uint8_t* row);
};

bool Decoder::read_header(std::string_view bytes) {
  if (setjmp(leave)) return false;
  jpeg_create_decompress(&jpeg);
  jpeg.client_data = this;
  jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(bytes.data()),
               static_cast<unsigned long>(bytes.size()));
  jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&jpeg, TRUE);
  return true;
}

bool Decoder::start() {
  if (setjmp(leave)) return false;
  progress.progress_monitor = [](j_common_ptr common) {
    Decoder* self = static_cast<Decoder*>(common->client_data);
    if (self->jpeg.input_scan_number > self->passes) self->fail("has too many passes over the image");
  };
  jpeg.progress = &progress;
  switch (jpeg.num_components) {
    case 1: jpeg.out_color_space = JCS_GRAYSCALE; break;
    case 3: jpeg.out_color_space = JCS_RGB; break;
    case 4: jpeg.out_color_space = JCS_CMYK; break;
    default: fail("has neither 1, 3 nor 4 color components");
  }
  jpeg_start_decompress(&jpeg);
  return true;
}

bool Decoder::read_row(uint8_t* row) {
  if (setjmp(leave)) return false;
  JSAMPROW rows[] = {row};
  while (jpeg_read_scanlines(&jpeg, rows, 1) == 0) {
  }
  return true;
}

// a·b/255, rounded.
uint8_t scaled(int a, int b) {
  const int product = a * b + 128;
  return uint8_t((product + (product >> 8)) >> 8);
}

// One row of the decoder to RGB. CMYK is stored inverted, as Adobe writes it: 255 is no ink.
void add_row(const std::vector<uint8_t>& row, int components, std::vector<uint8_t>& rgb) {
  if (components == 3) {
    rgb.insert(rgb.end(), row.begin(), row.end());
    return;
  }
  for (size_t i = 0; i < row.size(); i += size_t(components))
    for (int c = 0; c < 3; ++c) {
      if (components == 1) {
        rgb.push_back(row[i]);
        continue;
      }
      const int ink = 255 - row[i + size_t(c)], light = row[i + 3];
      rgb.push_back(uint8_t(std::max(0, light - int(scaled(ink, light)))));
    }
}

int orientation_of(const jpeg_decompress_struct& jpeg) {
  constexpr std::string_view kExif("Exif\0\0", 6);
  for (const jpeg_marker_struct* marker = jpeg.marker_list; marker; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (marker->marker == JPEG_APP0 + 1 && data.starts_with(kExif))
      return exif_orientation(data.substr(kExif.size()));
  }
  return 1;
}

}  // namespace

bool is_jpeg(std::string_view bytes) {
  return bytes.starts_with("\xFF\xD8\xFF");
}

StoredImage decode_jpeg(std::string_view bytes, const ImageLimits& limits) {
  Decoder decoder;
  decoder.passes = limits.passes;
  const auto check = [&](bool good) {
    if (!good) throw Error(str("is a damaged or unsupported JPEG image: ", decoder.message));
  };
  check(decoder.read_header(bytes));
  const int64_t width = decoder.jpeg.image_width, height = decoder.jpeg.image_height;
  check_image_size(width, height, limits);
  check(decoder.start());
  StoredImage stored{{width, height, {}}, orientation_of(decoder.jpeg)};
  std::vector<uint8_t> row(size_t(width * decoder.jpeg.output_components));
  for (int64_t y = 0; y < height; ++y) {
    check(decoder.read_row(row.data()));
    // Grown row by row: a header promises much, a short file holds little.
    add_row(row, decoder.jpeg.output_components, stored.image.rgb);
  }
  return stored;
}

}  // namespace ballast
