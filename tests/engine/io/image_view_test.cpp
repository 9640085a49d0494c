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

// Of two plain images each pixel is one's or the other's, and the other's are a rectangle of the image's proportions.
TEST(MixIn, PutsARectangleOfTheOtherWhereItIs) {
  std::mt19937_64 random(11);
  double area = 0, least = 1, most = 0;
  constexpr int kRounds = 300;
  for (int round = 0; round < kRounds; ++round) {
    const Image own = test::ramp(60, 40);
    Image other = own, mixed = own;
    for (uint8_t& value : other.rgb) value = uint8_t(255 - value);
    mix_in(other, mixed, random);
    int64_t left = 60, right = 0, top = 40, bottom = 0, count = 0;
    for (int64_t y = 0; y < 40; ++y)
      for (int64_t x = 0; x < 60; ++x) {
        const auto same = [&](const Image& image) { return std::equal(mixed.pixel(x, y), mixed.pixel(x, y) + 3, image.pixel(x, y)); };
        if (same(own)) continue;
        ASSERT_TRUE(same(other)) << x << ", " << y;
        left = std::min(left, x), right = std::max(right, x + 1);
        top = std::min(top, y), bottom = std::max(bottom, y + 1);
        ++count;
      }
    if (count > 0) {
      ASSERT_EQ(count, (right - left) * (bottom - top)) << "a whole rectangle";
      ASSERT_NEAR(double(right - left) / 60, double(bottom - top) / 40, 1.0 / 40);
    }
    const double share = double(count) / (60 * 40);
    area += share / kRounds;
    least = std::min(least, share), most = std::max(most, share);
  }
  EXPECT_NEAR(area, 0.5, 0.06);
  EXPECT_LT(least, 0.05);
  EXPECT_GT(most, 0.93);
}

}  // namespace
}  // namespace ballast
