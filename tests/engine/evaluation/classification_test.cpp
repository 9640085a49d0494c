#include "engine/evaluation/classification.h"

#include <cmath>

#include "engine/evaluation/image_list.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace ballast {
namespace {

TEST(BestClasses, DescendAndTiesGoToTheLowerIndex) {
  const std::vector<float> logits{1, 3, 2, 3, -1};
  EXPECT_EQ(best_classes(logits, 3), (std::vector<int64_t>{1, 3, 2}));
  EXPECT_EQ(best_classes(logits, 99).size(), 5u);
}

TEST(ClassificationScore, CountsFirstAndFirstFive) {
  ClassificationScore score;
  const std::vector<float> logits{6, 5, 4, 3, 2, 1};
  for (const int64_t label : {0, 4, 5}) score.add(logits, label);
  EXPECT_EQ(score.images, 3);
  EXPECT_NEAR(score.top1(), 100.0 / 3, 1e-9);
  EXPECT_NEAR(score.top5(), 200.0 / 3, 1e-9);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit));
  EXPECT_NEAR(score.nll(), std::log(sum) - (6 + 2 + 1) / 3.0, 1e-9);
}

TEST(NegativeLogLikelihood, StandsLargeLogits) {
  EXPECT_NEAR(negative_log_likelihood(std::vector<float>{1000, 0}, 1), 1000, 1e-9);
}

TEST(ImageList, CommasSpacesCommentsAndFolders) {
  const TempFolder folder;
  const auto list =
      folder.write("list.txt", "# what\n./a/b.jpg, 4\r\n\nwith space.png 5\nc.jpg\t6\n/abs.jpg 0");
  const auto images = read_image_list(list, {}, 7);
  ASSERT_EQ(images.size(), 4u);
  EXPECT_EQ(images[0].path, "./a/b.jpg");
  EXPECT_EQ(images[0].file, folder / "./a/b.jpg");
  EXPECT_EQ(images[1].path, "with space.png");
  EXPECT_EQ(images[1].label, 5);
  EXPECT_EQ(images[2].label, 6);
  EXPECT_EQ(images[3].file, "/abs.jpg");
  EXPECT_EQ(read_image_list(list, "/root", 7)[0].file, "/root/./a/b.jpg");
}

TEST(ImageList, LabelsAreNeededOnlyWhereTheyCount) {
  const TempFolder folder;
  const auto list = folder.write("list.txt", "a.jpg 1\nb.jpg\nc.jpg 12\n");
  EXPECT_EQ(read_image_list(list, {}, 0).size(), 3u);
  expect_error([&] { read_image_list(list, {}, 20); }, {"list.txt, line 2", "b.jpg"});
  expect_error([&] { read_image_list(folder.write("few.txt", "c.jpg 12\n"), {}, 12); },
               {"line 1", "below 12"});
  expect_error([&] { read_image_list(folder.write("none.txt", "\n# nothing\n"), {}, 12); },
               {"lists no images"});
}

}  // namespace
}  // namespace ballast
