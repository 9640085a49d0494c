// Linear ops on random data, with everything that can be added to x · Wᵀ, and what they must come to.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/ops/linear.h"
#include "tests/support/backends.h"
#include "tests/support/reference.h"

namespace ballast::test {

// What is added to x · Wᵀ; absent parts stay empty.
struct Extras {
  std::vector<float> bias, position_bias, residual;
  std::vector<int32_t> positions;
  int64_t position_rows = 0;
  Activation activation = Activation::none;
};

inline Extras random_extras(Random& random, int64_t tokens, int64_t out, Activation activation) {
  Extras extras{.bias = random.floats(out), .activation = activation};
  extras.position_rows = 7;
  extras.position_bias = random.floats(7 * out);
  extras.residual = random.floats(tokens * out);
  for (int64_t t = 0; t < tokens; ++t) extras.positions.push_back(int32_t(random.below(10)));
  return extras;
}

template <class Encoding>
Linear<Encoding> op_for(const std::vector<float>& x, const Encoding& weight, const Extras& extras,
                        int64_t tokens, std::vector<float>& y) {
  const int64_t out = weight.out_features;
  Linear<Encoding> op{.x = TensorView(x.data(), DType::f32, {tokens, weight.in_features}),
                      .weight = weight,
                      .activation = extras.activation,
                      .y = OutputView(y.data(), DType::f32, {tokens, out})};
  if (!extras.bias.empty()) op.bias = view_of(extras.bias, {out});
  if (!extras.position_bias.empty()) {
    op.position_bias = view_of(extras.position_bias, {extras.position_rows, out});
    op.positions = view_of(extras.positions).rows(0, tokens);
  }
  if (!extras.residual.empty()) op.residual = TensorView(extras.residual.data(), DType::f32, {tokens, out});
  return op;
}

template <class Encoding>
std::vector<float> run(Backend& backend, const std::vector<float>& x, const Encoding& weight,
                       const Extras& extras, int64_t tokens) {
  // NaN where nothing is written, so that a forgotten element cannot pass.
  std::vector<float> y(size_t(tokens * weight.out_features), std::numeric_limits<float>::quiet_NaN());
  backend.run(op_for(x, weight, extras, tokens, y));
  return y;
}

/// How far the sum x · wᵀ of one token and of row `row` may be from the exact one.
using SumBound = std::function<double(const float* x, const float* w, int64_t in_features, int64_t row)>;

inline double magnitude_of(const float* x, const float* w, int64_t in_features) {
  double sum = 0;
  for (int64_t k = 0; k < in_features; ++k) sum += std::abs(double(x[k]) * double(w[k]));
  return sum;
}
/// A chain of n fused steps is off by at most n half-ulps of Σ|x·w|.
inline double chain_bound(const float* x, const float* w, int64_t in_features, int64_t) {
  return double(in_features) * kRound32 * magnitude_of(x, w, in_features);
}

/// The sizes that integers in 24 bits or one digit beside 8-bit codes or shorter ones come in: how often the largest
/// error of x goes into max|x|. A step is a power of two of at most 2 · max|x| / 8355711 (the reach of three balanced
/// bytes), or max|x| / 127 (/ 32767 beside 8-bit codes); rounding moves x by half of one.
inline double plane_levels(int bits, bool int8) {
  return int8 ? (bits == 8 ? 2 * 32767 : 2 * 127) : 8355711;
}
/// What the rounding of x does to Σ x·w, chunk by chunk of at most 128 columns; `size(k)` is |w| as the codes make it.
/// The smallest max|x| told from zero is 2^-78.
template <class Size>
double rounded_x_bound(const float* x, int64_t in_features, int64_t group_size, double levels, Size&& size) {
  double bound = 0;
  for (int64_t group = 0; group < in_features; group += group_size)
    for (int64_t begin = group, end = std::min(group + group_size, in_features); begin < end; begin += 128) {
      double most = 0x1p-78, weights = 0;
      for (int64_t k = begin; k < std::min(begin + 128, end); ++k) {
        most = std::max(most, std::abs(double(x[k])));
        weights += size(k);
      }
      bound += 1.01 * most / levels * weights;
    }
  return bound;
}
inline int64_t chunks_of(int64_t in_features, int64_t group_size) {
  return in_features / group_size * ((group_size + 127) / 128);
}

/// Affine codes: beside x each chunk rounds twice where its planes are joined, once in its scale, once in the sum.
inline SumBound planes_bound(int bits, int64_t group_size, bool int8) {
  return [=](const float* x, const float* w, int64_t in_features, int64_t) {
    const double of_x = rounded_x_bound(x, in_features, group_size, plane_levels(bits, int8),
                                        [&](int64_t k) { return std::abs(double(w[k])); });
    return of_x + double(chunks_of(in_features, group_size) + 4) * kRound32 *
                      (magnitude_of(x, w, in_features) + of_x);
  };
}

/// Codes with outliers: scale · code and scale · zero · Σx are rounded apart, so the sizes are those of
/// scale · (code + |zero|), code 0 under an outlier, and of the outliers, each of which rounds twice more. `matrix` must
/// outlive the bound.
inline SumBound outliers_bound(const SparseOutlierMatrix& matrix, bool int8) {
  return [&matrix, int8](const float* x, const float*, int64_t in_features, int64_t row) {
    std::vector<double> sizes(static_cast<size_t>(in_features)), outliers(sizes);
    for (int64_t k = 0; k < in_features; ++k) {
      const int64_t group = k / matrix.group_size;
      sizes[size_t(k)] =
          std::abs(double(matrix.scale(row, group))) *
          (matrix.codes[size_t(row * in_features + k)] + std::abs(double(matrix.zero(row, group))));
    }
    const uint32_t first = matrix.outlier_rows[size_t(row)], last = matrix.outlier_rows[size_t(row) + 1];
    for (uint32_t i = first; i < last; ++i)
      outliers[matrix.outlier_columns[i]] = std::abs(double(f16_to_f32(matrix.outlier_values[i])));
    const double of_x = rounded_x_bound(x, in_features, matrix.group_size, plane_levels(matrix.bits, int8),
                                        [&](int64_t k) { return sizes[size_t(k)]; });
    double magnitude = of_x;
    for (int64_t k = 0; k < in_features; ++k)
      magnitude += std::abs(double(x[k])) * (2 * sizes[size_t(k)] + outliers[size_t(k)]);
    return of_x + double(chunks_of(in_features, matrix.group_size) + last - first + 8) * kRound32 * magnitude;
  };
}

/// Residual binary codes beside int8 activations: sums of bits meet combinations of coefficients, so the sizes are those
/// of all of them, each taken at most twice; few operations a chunk round. `x_rounds`: false where x is a whole number of
/// steps. `matrix` must outlive the bound.
inline SumBound binary_bound(const ResidualBinaryMatrix& matrix, bool x_rounds) {
  return [&matrix, x_rounds](const float* x, const float* w, int64_t in_features, int64_t row) {
    const double of_x = x_rounds ? rounded_x_bound(x, in_features, matrix.block_size, plane_levels(2, true),
                                                   [&](int64_t k) { return std::abs(double(w[k])); })
                                 : 0;
    double magnitude = of_x;
    for (int64_t k = 0; k < in_features; ++k) {
      const uint16_t* coefficients =
          matrix.coefficients.data() + size_t((row * matrix.blocks() + k / matrix.block_size) * 7);
      double size = 0;
      for (int i = matrix.salient[size_t(k)] ? 0 : 3; i < (matrix.salient[size_t(k)] ? 3 : 7); ++i)
        size += 2 * std::abs(double(f16_to_f32(coefficients[i])));
      magnitude += std::abs(double(x[k])) * size;
    }
    const int64_t chunks = matrix.blocks() * ((matrix.block_size + 127) / 128);
    return of_x + double(chunks + 12) * kRound32 * magnitude;
  };
}

/// One output in f64. Every addition after the sum rounds once more; gelu stretches errors by at most 1.13 and
/// erff and three products add a few roundings.
inline Expected one_output(const DenseMatrix& weight, const float* x, int64_t t, int64_t row,
                           const Extras& extras, const SumBound& sum_bound) {
  double sum = 0, magnitude = 0;
  for (int64_t k = 0; k < weight.in_features; ++k) {
    const double product = double(x[k]) * weight.values[size_t(row * weight.in_features + k)];
    sum += product;
    magnitude += std::abs(product);
  }
  const auto plus = [&](double value) {
    sum += value;
    magnitude += std::abs(value);
  };
  if (!extras.bias.empty()) plus(extras.bias[size_t(row)]);
  if (!extras.position_bias.empty() && extras.positions[size_t(t)] < extras.position_rows)
    plus(extras.position_bias[size_t(extras.positions[size_t(t)] * weight.out_features + row)]);
  const float* w = weight.values.data() + row * weight.in_features;
  const double of_sum = sum_bound(x, w, weight.in_features, row);
  double bound = of_sum + 2 * kRound32 * (magnitude + of_sum);
  if (extras.activation == Activation::relu) sum = std::max(sum, 0.0);
  if (extras.activation == Activation::gelu) {
    bound = 1.13 * bound + 6 * kRound32 * std::abs(sum);
    sum = sum / 2 * (1 + std::erf(sum / std::sqrt(2.0)));
  }
  if (!extras.residual.empty()) {
    sum += extras.residual[size_t(t * weight.out_features + row)];
    bound += kRound32 * (std::abs(sum) + bound);
  }
  return {sum, bound};
}

inline std::vector<Expected> reference(const DenseMatrix& weight, const std::vector<float>& x,
                                       const Extras& extras, int64_t tokens,
                                       const SumBound& sum_bound = chain_bound) {
  std::vector<Expected> out;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t row = 0; row < weight.out_features; ++row)
      out.push_back(one_output(weight, x.data() + t * weight.in_features, t, row, extras, sum_bound));
  return out;
}

inline std::vector<float> first_rows(const std::vector<float>& y, int64_t rows, int64_t width) {
  return {y.begin(), y.begin() + rows * width};
}

/// `y` equals `floats` for the `special` tokens (NaN where those are NaN), `finite` for the others.
inline void expect_floats_of_special_tokens(const std::vector<float>& y, const std::vector<float>& floats,
                                            const std::vector<float>& finite,
                                            const std::vector<int64_t>& special_tokens, int64_t out) {
  for (size_t at = 0; at < y.size(); ++at) {
    const int64_t t = int64_t(at) / out, row = int64_t(at) % out;
    const bool special = std::count(special_tokens.begin(), special_tokens.end(), t) > 0;
    if (special && std::isnan(floats[at])) {
      ASSERT_TRUE(std::isnan(y[at])) << t << ", " << row;
    } else {
      ASSERT_EQ(y[at], special ? floats[at] : finite[at]) << t << ", " << row;
    }
  }
}

inline constexpr int64_t kTokenCounts[] = {1, 2, 3, 5, 6, 7, 12, 13, 193};
inline constexpr int64_t kMostTokens = 400;

// Everything that must hold for one packed weight: near the f64 loop, and the same bits for a token in every
// batch size, with two threads and on the scalar reference.
template <class Matrix>
void check_matrix(const std::string& isa, const Matrix& matrix, const DenseMatrix& values, uint64_t seed,
                  const SumBound& sum_bound = chain_bound, const std::string& activations = "f32") {
  Random random(seed);
  const int64_t out = values.out_features;
  const int64_t most = isa == "scalar" ? 193 : kMostTokens;
  const std::vector<float> x = random.floats(most * values.in_features);
  const Extras extras = random_extras(random, most, out, Activation::relu);
  const auto backend = cpu_backend(isa, 1, activations), two = cpu_backend(isa, 2, activations);
  const auto weight = packed(*backend, matrix);
  const std::vector<float> whole = run(*backend, x, weight.view, extras, most);
  ASSERT_TRUE(within_bounds(whole, reference(values, x, extras, most, sum_bound)));
  const auto weight_of_two = packed(*two, matrix);
  ASSERT_TRUE(same_bits(run(*two, x, weight_of_two.view, extras, most), whole)) << "two threads";
  for (int64_t tokens : kTokenCounts) {
    const std::vector<float> expected = first_rows(whole, tokens, out);
    ASSERT_TRUE(same_bits(run(*backend, x, weight.view, extras, tokens), expected)) << tokens << " tokens";
    ASSERT_TRUE(same_bits(run(*two, x, weight_of_two.view, extras, tokens), expected))
        << tokens << " tokens, 2";
  }
  const auto scalar = cpu_backend("scalar", 1, activations);
  const auto weight_of_scalar = packed(*scalar, matrix);
  ASSERT_TRUE(same_bits(run(*scalar, x, weight_of_scalar.view, extras, 13), first_rows(whole, 13, out)))
      << "scalar";
}

}  // namespace ballast::test
