// Resizing against Pillow's, and what preparation makes of each form of its file.
#include "engine/io/image_preparation.h"

#include <gtest/gtest.h>

#include "engine/io/json.h"
#include "tests/engine/io/image_support.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

const std::filesystem::path kImages = std::filesystem::path(BALLAST_SOURCE_DIR) / "tests/golden/image";

TEST(ImageResize, IsPillowsBitForBit) {
  const GoldenTensors golden(kImages / "golden.safetensors");
  const Image photo = read_image(kImages / "photo.jpg");
  if (photo.rgb != golden.bytes("rgb_photo.jpg")) GTEST_SKIP() << "this JPEG library rounds differently";
  const nlohmann::json cases =
      parse_json(read_file(kImages / "cases.json", 1 << 16), "cases.json").at("resizes");
  for (size_t i = 0; i < cases.size(); ++i) {
    const int64_t width = cases[i].at("width"), height = cases[i].at("height");
    const Resampling filter = Resampling(cases[i].at("resample").get<int>());
    const Image whole = resize(photo, width, height, filter, {0, 0, width, height});
    EXPECT_EQ(whole.rgb, golden.bytes(str("resized_", i))) << cases[i];
    const Window window{width / 3, height / 4, width / 2, height / 2};
    const Image part = resize(photo, width, height, filter, window);
    for (int64_t y = 0; y < window.height; ++y)
      ASSERT_TRUE(std::equal(part.pixel(0, y), part.pixel(0, y) + 3 * window.width,
                             whole.pixel(window.left, window.top + y)))
          << cases[i] << ", row " << y;
  }
}

class Preparation : public testing::Test {
 protected:
  ImagePreparation read(const std::string& preprocessor, const std::string& config = "{}") {
    folder_.write("config.json", config);
    folder_.write("model.safetensors", safetensors_bytes("{}", 0));
    if (!preprocessor.empty()) folder_.write("preprocessor_config.json", preprocessor);
    return ImagePreparation::read(Checkpoint::open(folder_.path()));
  }
  TempFolder folder_;
};

TEST_F(Preparation, CropsAtTheFloorOfHalf) {
  const auto preparation = read(R"({"image_processor_type": "ViTImageProcessor", "do_resize": false,
                                    "do_center_crop": true, "crop_size": {"height": 4, "width": 3}})");
  const Image out = preparation.prepare(test::ramp(8, 7));
  EXPECT_EQ(out.width, 3);
  EXPECT_EQ(out.height, 4);
  EXPECT_EQ(out.pixel(0, 0)[0], 2);  // floor((8 − 3) / 2)
  EXPECT_EQ(out.pixel(0, 0)[1], 1);  // floor((7 − 4) / 2)
}

TEST_F(Preparation, PadsWithBlackWhatIsTooSmall) {
  const auto preparation = read(R"({"do_resize": false, "do_center_crop": true, "crop_size": 5})");
  const Image out = preparation.prepare(test::ramp(2, 9));
  EXPECT_EQ(out.width, 5);
  EXPECT_EQ(out.height, 5);
  EXPECT_EQ(out.pixel(1, 0)[1], 0);
  EXPECT_EQ(out.pixel(2, 0)[1], 2);
  EXPECT_EQ(out.pixel(3, 0)[0], 1);
}

TEST_F(Preparation, ShortestEdgeKeepsTheShape) {
  const auto preparation = read(R"({"size": {"shortest_edge": 10}})");
  EXPECT_EQ(preparation.prepare(test::ramp(20, 31)).height, 15);
  EXPECT_EQ(preparation.prepare(test::ramp(20, 31)).width, 10);
  EXPECT_EQ(preparation.prepare(test::ramp(33, 20)).width, 16);
}

TEST_F(Preparation, ANumberIsASquareAndDefaultsAreTheProcessors) {
  EXPECT_EQ(read(R"({"size": 12})").prepared_size(), (std::pair<int64_t, int64_t>(12, 12)));
  EXPECT_EQ(read(R"({"feature_extractor_type": "ViTFeatureExtractor"})").prepared_size(),
            (std::pair<int64_t, int64_t>(224, 224)));
  const auto deit = read(R"({"feature_extractor_type": "DeiTFeatureExtractor"})");
  EXPECT_EQ(deit.prepared_size(), (std::pair<int64_t, int64_t>(224, 224)));
  EXPECT_EQ(deit.prepare(test::ramp(300, 200)).width, 224);
}

TEST_F(Preparation, TimmsConfiguration) {
  const std::string config =
      R"({"pretrained_cfg": {"input_size": [3, 20, 20], "interpolation": "bilinear", "crop_pct": 0.9,
          "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}})";
  const Image out = read("", config).prepare(test::ramp(22, 22));  // floor(20 / 0.9) is 22: nothing to resize
  EXPECT_EQ(out.width, 20);
  EXPECT_EQ(out.pixel(0, 0)[0], 1);
}

TEST_F(Preparation, ValuesAreInPatchOrder) {
  const auto preparation =
      read(R"({"do_resize": false, "image_mean": [0.5, 0.25, 0], "image_std": [0.5, 1, 2]})");
  std::vector<float> patches(3 * 4 * 2);
  preparation.write_patches(test::ramp(4, 2), 2, 2, patches);
  const auto value = [](double pixel, float mean, float std) { return (float(pixel / 255) - mean) / std; };
  EXPECT_NEAR(patches[1], value(1, 0.5f, 0.5f), 1e-6);       // first patch, red, row 0, column 1
  EXPECT_NEAR(patches[4 + 2], value(1, 0.25f, 1), 1e-6);     // green, row 1
  EXPECT_NEAR(patches[12 + 1], value(3, 0.5f, 0.5f), 1e-6);  // second patch
}

TEST_F(Preparation, RefusesWhatItDoesNotKnow) {
  expect_error([&] { read(""); }, {"has no preprocessor_config.json"});
  for (const auto& [text, part] :
       {std::pair{R"({"image_processor_type": "CLIPImageProcessor"})", "CLIPImageProcessor"},
        {R"({"size": {"longest_edge": 3}})", "size"},
        {R"({"size": -1})", "size"},
        {R"({"resample": 0})", "resample"},
        {R"({"image_std": [1, 0, 1]})", "image_std"},
        {R"({"image_mean": [1]})", "image_mean"},
        {R"({"do_center_crop": true, "crop_size": {"shortest_edge": 4}})", "crop_size"}})
    expect_error([&, text = text] { read(text); }, {"preprocessor_config.json", part});
}

}  // namespace
}  // namespace ballast
