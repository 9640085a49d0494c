#include "kernels/ops/factorize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast {
namespace {

using test::IsaTest;
using test::kRound64;
using test::Random;
using test::same_bits;

// AᵀA/samples + damping on the diagonal: symmetric, with no eigenvalue below the damping.
constexpr double kDamping = 0.05;
std::vector<double> positive_definite(int64_t size, uint64_t seed) {
  Random random(seed);
  const int64_t samples = 12;
  const std::vector<float> a = random.floats(samples * size);
  std::vector<double> h(size_t(size * size));
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j) {
      double sum = i == j ? kDamping : 0;
      for (int64_t s = 0; s < samples; ++s)
        sum += double(a[size_t(s * size + i)]) * a[size_t(s * size + j)] / samples;
      h[size_t(i * size + j)] = sum;
    }
  return h;
}

// The largest eigenvalue is at most the largest row sum of magnitudes.
double condition_bound(const std::vector<double>& h, int64_t size) {
  double largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < size; ++j) sum += std::abs(h[size_t(i * size + j)]);
    largest = std::max(largest, sum);
  }
  return largest / kDamping;
}

// U upper triangular and Uᵀ·U = H⁻¹, checked as U·H·Uᵀ = 1.
void expect_factor(const std::vector<double>& u, const std::vector<double>& h, int64_t n) {
  std::vector<double> product(size_t(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j)
      ASSERT_EQ(u[size_t(i * n + j)], h[size_t(i * n + j)]) << "below the diagonal nothing changes";
    ASSERT_GT(u[size_t(i * n + i)], 0);
    for (int64_t k = i; k < n; ++k)
      for (int64_t j = 0; j < n; ++j)
        product[size_t(i * n + j)] += u[size_t(i * n + k)] * h[size_t(k * n + j)];
  }
  const double bound = 4 * double(n) * kRound64 * condition_bound(h, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t k = j; k < n; ++k) sum += product[size_t(i * n + k)] * u[size_t(j * n + k)];
      ASSERT_LE(std::abs(sum - (i == j)), bound) << "element " << i << ", " << j << " of U H Uᵀ is " << sum;
    }
}

class Factorize : public IsaTest {};
BALLAST_FOR_ALL_ISAS(Factorize);

TEST_P(Factorize, EverySizeUpToOneBlockAndABit) {
  const auto two = test::cpu_backend(GetParam(), 2), reference = test::cpu_backend("scalar");
  for (int64_t size = 1; size <= 200; ++size) {
    SCOPED_TRACE(str("size ", size));
    const std::vector<double> h = positive_definite(size, uint64_t(size));
    std::vector<double> u = h, u_two = h, u_scalar = h;
    ASSERT_TRUE(backend_->run(FactorizeInverse{u.data(), size}));
    ASSERT_TRUE(two->run(FactorizeInverse{u_two.data(), size}));
    ASSERT_TRUE(reference->run(FactorizeInverse{u_scalar.data(), size}));
    ASSERT_TRUE(same_bits(u, u_two)) << "two threads";
    ASSERT_TRUE(same_bits(u, u_scalar)) << "scalar";
    // The product takes n³ steps: near the ends of the blocks of 128 and at every seventh size.
    if (size % 128 <= 1 || size % 128 == 127 || size % 7 == 0 || size < 10) {
      ASSERT_NO_FATAL_FAILURE(expect_factor(u, h, size));
    }
  }
}

// More terms than the sums keep in registers, and rows that no block divides.
TEST_P(Factorize, SeveralBlocksWithTails) {
  for (int64_t size : {256, 389, 530}) {
    SCOPED_TRACE(str("size ", size));
    const std::vector<double> h = positive_definite(size, uint64_t(size));
    std::vector<double> u = h, u_three = h, u_scalar = h;
    ASSERT_TRUE(backend_->run(FactorizeInverse{u.data(), size}));
    ASSERT_TRUE(test::cpu_backend(GetParam(), 3)->run(FactorizeInverse{u_three.data(), size}));
    ASSERT_TRUE(test::cpu_backend("scalar")->run(FactorizeInverse{u_scalar.data(), size}));
    ASSERT_TRUE(same_bits(u, u_three)) << "three threads";
    ASSERT_TRUE(same_bits(u, u_scalar)) << "scalar";
    ASSERT_NO_FATAL_FAILURE(expect_factor(u, h, size));
  }
}

TEST_P(Factorize, KnownInverse) {
  // H = [[4, 2], [2, 5]], H⁻¹ = [[5, -2], [-2, 4]] / 16.
  std::vector<double> h{4, 2, 2, 5};
  ASSERT_TRUE(backend_->run(FactorizeInverse{h.data(), 2}));
  EXPECT_NEAR(h[0], std::sqrt(5.0) / 4, 1e-15);
  EXPECT_NEAR(h[1], -0.5 / std::sqrt(5.0), 1e-15);
  EXPECT_EQ(h[2], 2) << "below the diagonal nothing changes";
  EXPECT_NEAR(h[3], std::sqrt(0.25 - 0.05), 1e-15);
}

TEST_P(Factorize, RefusesWhatIsNotPositiveDefinite) {
  for (int64_t size : {1, 5, 64, 130})
    for (int64_t bad : {int64_t(0), size / 2, size - 1}) {
      std::vector<double> h = positive_definite(size, 9);
      h[size_t(bad * size + bad)] = -0.5;
      EXPECT_FALSE(backend_->run(FactorizeInverse{h.data(), size})) << size << ", diagonal " << bad;
    }
  std::vector<double> singular{1, 1, 1, 1}, zero(9);
  EXPECT_FALSE(backend_->run(FactorizeInverse{singular.data(), 2}));
  EXPECT_FALSE(backend_->run(FactorizeInverse{zero.data(), 3}));
}

TEST_P(Factorize, RefusesWhatIsNotFinite) {
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for (int64_t size : {5, 70, 130})
      for (const auto& [i, j] :
           {std::pair<int64_t, int64_t>{0, 0}, {size - 1, size - 1}, {1, size - 1}, {0, 1}}) {
        std::vector<double> h = positive_definite(size, 10);
        h[size_t(i * size + j)] = h[size_t(j * size + i)] = bad;
        EXPECT_FALSE(backend_->run(FactorizeInverse{h.data(), size})) << size << ": " << i << ", " << j;
      }
}

}  // namespace
}  // namespace ballast
