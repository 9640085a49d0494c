// Pixels against Pillow's, and what is refused (see tests/golden/image/README.md).
#include "engine/io/image.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/io/image_formats.h"
#include "engine/io/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

const std::filesystem::path kImages = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/image";

std::vector<std::string> image_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kImages))
    if (entry.path().extension() == ".jpg" || entry.path().extension() == ".png")
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string bytes_of(const std::string& name) {
  return read_file(kImages / name, 1 << 20);
}

class PillowImage : public testing::TestWithParam<std::string> {};

TEST_P(PillowImage, HasTheSamePixels) {
  const GoldenTensors golden(kImages / "golden.safetensors");
  const std::vector<uint8_t> expected = golden.bytes("rgb_" + GetParam());
  const Image image = read_image(kImages / GetParam());
  ASSERT_EQ(image.rgb.size(), expected.size());
  int worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(image.rgb[i] - expected[i]));
  // The same library with the same settings; another build of it may round a transform differently.
  EXPECT_LE(worst, GetParam().find("jp") != std::string::npos ? 1 : 0);
}

TEST_P(PillowImage, CutAnywhereIsOneErrorLine) {
  const std::string bytes = bytes_of(GetParam());
  for (size_t size = 0; size + 12 < bytes.size(); size += 1 + bytes.size() / 97) {
    try {
      decode_image(std::string_view(bytes).substr(0, size), "cut.jpg");
      ADD_FAILURE() << GetParam() << " was read from " << size << " of " << bytes.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with("cut.jpg: ")) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  }
}

// Any byte changed: pixels or an error, never a crash.
TEST_P(PillowImage, DamagedBytesDoNoHarm) {
  const std::string bytes = bytes_of(GetParam());
  for (size_t at = 0; at < bytes.size(); at += 1 + bytes.size() / 251) {
    std::string damaged = bytes;
    damaged[at] = char(damaged[at] ^ 0x5A);
    try {
      const Image image = decode_image(damaged, "damaged", {.pixels = 1 << 20});
      EXPECT_EQ(int64_t(image.rgb.size()), 3 * image.width * image.height);
    } catch (const Error&) {
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PillowImage, testing::ValuesIn(image_names()), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
});

TEST(Image, RefusesWhatIsNoImage) {
  const TempFolder folder;
  folder.write("empty.jpg", "");
  expect_error([&] { read_image(folder / "empty.jpg"); }, {"empty.jpg: is empty"});
  folder.write("text.png", "This is no picture.");
  expect_error([&] { read_image(folder / "text.png"); }, {"text.png: is neither a JPEG nor a PNG image"});
  folder.write("short.jpg", "\xFF\xD8\xFF");
  expect_error([&] { read_image(folder / "short.jpg"); }, {"short.jpg: is a damaged or unsupported JPEG"});
  expect_error([&] { read_image(folder / "missing.jpg"); }, {"missing.jpg"});
  expect_error([&] { read_image(folder.path()); }, {folder.path().string()});
}

// Width and height of a PNG's header replaced, its checksum too.
std::string png_of_size(uint32_t width, uint32_t height) {
  std::string bytes = bytes_of("rgb.png");
  for (int i = 0; i < 4; ++i) {
    bytes[size_t(16 + i)] = char(width >> (24 - 8 * i));
    bytes[size_t(20 + i)] = char(height >> (24 - 8 * i));
  }
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 12; i < 29; ++i) {
    crc ^= uint8_t(bytes[i]);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  for (int i = 0; i < 4; ++i) bytes[size_t(29 + i)] = char(~crc >> (24 - 8 * i));
  return bytes;
}

TEST(Image, RefusesPixelBombsByTheirHeader) {
  EXPECT_EQ(decode_image(png_of_size(19, 13), "good").width, 19);
  expect_error([] { decode_image(png_of_size(60000, 60000), "bomb"); },
               {"bomb: is 60000 x 60000 pixels", "89478485"});
  expect_error([] { decode_image(png_of_size(0x7FFFFFFF, 1), "bomb"); }, {"bomb: is 2147483647 x 1 pixels"});
  std::string jpeg = bytes_of("photo.jpg");
  const size_t header = jpeg.find("\xFF\xC0");
  ASSERT_NE(header, std::string::npos);
  jpeg.replace(header + 5, 4, "\xFF\x00\xFF\x00", 4);
  expect_error([&] { decode_image(jpeg, "bomb"); }, {"bomb: is 65280 x 65280 pixels"});
}

TEST(Image, RefusesTooManyPasses) {
  expect_error([] { decode_image(bytes_of("progressive.jpg"), "slow", {.passes = 2}); },
               {"slow: ", "too many passes"});
}

TEST(Image, OrientationOfDamagedExifIsUpright) {
  EXPECT_EQ(exif_orientation(""), 1);
  EXPECT_EQ(exif_orientation("II*\0\xFF\xFF\xFF\xFF"), 1);
  const std::string_view six("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", 26);
  EXPECT_EQ(exif_orientation(six), 6);
  EXPECT_EQ(exif_orientation(six.substr(0, 20)), 1);
}

}  // namespace
}  // namespace ballast
