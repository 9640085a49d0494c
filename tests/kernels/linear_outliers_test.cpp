// Weights with outliers times activations in integers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/linear_ops.h"

namespace ballast {
namespace {

using test::Extras;
using test::IsaTest;
using test::Random;
using test::run;
using test::same_bits;

class LinearOutliers : public IsaTest {};
BALLAST_FOR_ALL_ISAS(LinearOutliers);

// {out_features, in_features, group_size}
TEST_P(LinearOutliers, OfAnyShapeAndGroup) {
  const Shape shapes[] = {{150, 192, 16}, {17, 768, 64},  {31, 37, 37},
                          {16, 300, 5},   {33, 512, 256}, {5, 320, 160}};
  uint64_t seed = 200;
  for (const char* activations : {"f32", "int8"})
    for (int bits : {2, 3, 4, 8})
      for (const Shape& shape : shapes) {
        SCOPED_TRACE(str(bits, " bits, out, in, group ", shape.text(), ", ", activations));
        Random random(++seed);
        const auto matrix = test::random_outliers(random, bits, 3, shape[0], shape[1], shape[2]);
        ASSERT_NO_FATAL_FAILURE(test::check_matrix(
            GetParam(), matrix, test::decoded(matrix), seed,
            test::outliers_bound(matrix, std::string(activations) == "int8"), activations));
      }
}

void expect_near_decoded(Backend& backend, const SparseOutlierMatrix& matrix, Random& random) {
  const auto weight = test::packed(backend, matrix);
  const std::vector<float> x = random.floats(13 * matrix.in_features);
  for (int64_t tokens : {1, 2, 13})
    ASSERT_TRUE(within_bounds(
        run(backend, x, weight.view, {}, tokens),
        test::reference(test::decoded(matrix), x, {}, tokens, test::outliers_bound(matrix, false))))
        << tokens << " tokens";
}

TEST_P(LinearOutliers, OfAnyStatisticsAndShare) {
  uint64_t seed = 400;
  for (int bits : {2, 3, 4, 8})
    for (int stat_bits : {1, 2, 3, 4, 5, 8})
      for (const Shape& shape : {Shape{83, 336, 16}, {64, 192, 192}, {15, 768, 3}})
        for (float share : {0.0f, 0.02f, 1.0f}) {
          SCOPED_TRACE(str(bits, " bits, ", stat_bits, " of statistics, ", shape.text(), ", share ", share));
          Random random(++seed);
          auto matrix = test::random_outliers(random, bits, stat_bits, shape[0], shape[1], shape[2], share);
          // The smallest subnormal, the largest finite binary16 and minus zero.
          matrix.stats[0] = 0x0001;
          matrix.stats[1] = 0x7BFF;
          matrix.stats[2] = 0xFBFF;
          matrix.outlier_values[0] = 0x8000;
          ASSERT_NO_FATAL_FAILURE(expect_near_decoded(*backend_, matrix, random));
        }
  // No outliers at all.
  Random random(seed);
  auto matrix = test::random_outliers(random, 3, 3, 40, 64, 16);
  matrix.outlier_columns.clear();
  matrix.outlier_values.clear();
  matrix.outlier_rows.assign(41, 0);
  ASSERT_NO_FATAL_FAILURE(expect_near_decoded(*backend_, matrix, random));
}

// They take the float kernel, which gives the bits of the decoded matrix.
TEST_P(LinearOutliers, TokensThatAreNotFiniteRunAsFloats) {
  Random random(7);
  for (int bits : {2, 3, 4, 8}) {
    const auto matrix = test::random_outliers(random, bits, 3, 40, 336, 16);
    const auto weight = test::packed(*backend_, matrix);
    const auto dense = test::packed(*backend_, test::decoded(matrix));
    std::vector<float> x = random.floats(3 * 336);
    const std::vector<float> finite = run(*backend_, x, weight.view, {}, 3);
    x[336 + 200] = std::numeric_limits<float>::infinity();
    const std::vector<float> y = run(*backend_, x, weight.view, {}, 3);
    const std::vector<float> floats = run(*backend_, x, dense.view, {}, 3);
    for (size_t i = 0; i < y.size(); ++i) {
      if (i / 40 == 1 && std::isnan(floats[i])) {
        ASSERT_TRUE(std::isnan(y[i])) << i;
      } else {
        ASSERT_EQ(y[i], (i / 40 == 1 ? floats : finite)[i]) << i;
      }
    }
  }
}

}  // namespace
}  // namespace ballast
