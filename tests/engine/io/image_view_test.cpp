#include "engine/io/image_view.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/engine/io/image_support.h"

namespace ballast {
namespace {

TEST(RandomView, IsAPartOfTheImageMirroredOrNot) {
  const Image image = test::ramp(200, 120);
  std::mt19937_64 random(7);
  int mirrored = 0;
  double least = 1, most = 0;
  for (int round = 0; round < 200; ++round) {
    const Image view = random_view(image, random);
    const double area = double(view.width * view.height) / (200.0 * 120);
    least = std::min(least, area);
    most = std::max(most, area);
    ASSERT_GE(area, kLeastArea * 0.85) << "sides that stick out are cut";
    ASSERT_LE(view.width, 200);
    ASSERT_LE(view.height, 120);
    const int step = int(view.pixel(1, 0)[0]) - int(view.pixel(0, 0)[0]);
    ASSERT_EQ(std::abs(step), 1);
    mirrored += step < 0;
    for (int64_t y = 0; y < view.height; ++y)
      for (int64_t x = 0; x < view.width; ++x) {
        ASSERT_EQ(view.pixel(x, y)[0], view.pixel(0, 0)[0] + step * int(x));
        ASSERT_EQ(view.pixel(x, y)[1], view.pixel(0, 0)[1] + int(y));
      }
  }
  EXPECT_GT(mirrored, 70);
  EXPECT_LT(mirrored, 130);
  EXPECT_LT(least, kLeastArea * 1.2);
  EXPECT_GT(most, 0.85);
}

TEST(RandomView, OfASinglePixelAndOfALine) {
  std::mt19937_64 random(1);
  for (const auto& [width, height] : {std::pair<int64_t, int64_t>{1, 1}, {1, 90}, {90, 1}})
    for (int round = 0; round < 50; ++round) {
      const Image view = random_view(test::ramp(width, height), random);
      EXPECT_GE(view.width, 1);
      EXPECT_GE(view.height, 1);
      EXPECT_LE(view.width, width);
      EXPECT_LE(view.height, height);
    }
}

TEST(RandomView, DependsOnTheSeedAlone) {
  const Image image = test::ramp(64, 48);
  std::mt19937_64 first(3), second(3), other(4);
  const Image view = random_view(image, first);
  EXPECT_EQ(view.rgb, random_view(image, second).rgb);
  EXPECT_NE(view.rgb, random_view(image, other).rgb);
}

}  // namespace
}  // namespace ballast
