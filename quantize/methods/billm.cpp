#include "quantize/methods/billm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "quantize/joint_groups.h"
#include "quantize/methods/binary_fit.h"
#include "quantize/unbias.h"

namespace ballast {
namespace {

constexpr int64_t kMostSalient = 49;

class BillmRounder final : public JointGroupRounder {
 public:
  BillmRounder(ResidualBinaryMatrix& matrix, const InverseFactor& factor)
      : matrix_(matrix), factor_(factor), levels_(size_t(matrix.out_features)) {}

  float round(int64_t row, int64_t column, float weight) override {
    const auto& levels = levels_[size_t(row)][matrix_.salient[size_t(column)]];
    const int code = nearest(levels, weight);
    matrix_.codes[size_t(row * matrix_.in_features + column)] = uint8_t(code);
    return levels[size_t(code)];
  }

 protected:
  void start_groups(Backend& backend, int64_t block, const TensorView& weights) override {
    const int64_t first = block * matrix_.block_size, width = weights.shape[1];
    const std::vector<int32_t> ranked = ranked_columns(backend, first, weights);
    const int64_t salient = best_count(backend, ranked, weights);
    for (int64_t i = 0; i < salient; ++i) matrix_.salient[size_t(first + ranked[size_t(i)])] = 1;
    std::vector<int32_t> rest;  // in their own order; dead inputs have no say
    for (int64_t j = 0; j < width; ++j)
      if (!matrix_.salient[size_t(first + j)] && !factor_.dead[size_t(first + j)]) rest.push_back(int32_t(j));
    const std::span<const int32_t> chosen(ranked.data(), size_t(salient));
    backend.parallel_for(matrix_.out_features, [&](int64_t begin, int64_t end) {
      std::vector<float> some;
      for (int64_t row = begin; row < end; ++row) {
        const float* w = weights.row(row);
        const auto take = [&](std::span<const int32_t> columns) {
          some.clear();
          for (int32_t j : columns) some.push_back(w[j]);
          return std::span<const float>(some);
        };
        store(row, block, fit_residual(take(chosen)), fit_split(take(rest)));
      }
    });
  }

 private:
  // Live columns of the block by descending saliency.
  std::vector<int32_t> ranked_columns(Backend& backend, int64_t first, const TensorView& weights) const {
    std::vector<double> saliency(size_t(weights.shape[1]));
    backend.parallel_for(weights.shape[1], [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < weights.shape[0]; ++row)
        for (int64_t j = begin; j < end; ++j)
          saliency[size_t(j)] += double(weights.row(row)[j]) * double(weights.row(row)[j]);
      for (int64_t j = begin; j < end; ++j)
        saliency[size_t(j)] /= factor_.diagonal(first + j) * factor_.diagonal(first + j);
    });
    std::vector<int32_t> columns;
    for (int64_t j = 0; j < weights.shape[1]; ++j)
      if (!factor_.dead[size_t(first + j)]) columns.push_back(int32_t(j));
    std::stable_sort(columns.begin(), columns.end(),
                     [&](int32_t a, int32_t b) { return saliency[size_t(a)] > saliency[size_t(b)]; });
    return columns;
  }

  // How many of the ranked columns to make salient: the least squared error with one stage for the rest (§3.2).
  int64_t best_count(Backend& backend, const std::vector<int32_t>& ranked, const TensorView& weights) const {
    const int64_t live = int64_t(ranked.size()), most = std::min(kMostSalient, live - 1);
    if (most < 1) return 0;
    const int64_t rows = weights.shape[0];
    std::vector<double> errors(size_t(rows * most));
    backend.parallel_for(rows, [&](int64_t begin, int64_t end) {
      std::vector<float> w(static_cast<size_t>(live));
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < live; ++i) w[size_t(i)] = weights.row(row)[ranked[size_t(i)]];
        const std::span<const float> all(w);
        for (int64_t count = 1; count <= most; ++count)
          errors[size_t(row * most + count - 1)] =
              residual_error(all.first(size_t(count))) + stage_error(all.subspan(size_t(count)));
      }
    });
    std::vector<double> sums(static_cast<size_t>(most));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < most; ++i) sums[size_t(i)] += errors[size_t(row * most + i)];
    return 1 + (std::min_element(sums.begin(), sums.end()) - sums.begin());
  }

  void store(int64_t row, int64_t block, const ResidualFit& salient, const SplitFit& rest) {
    using M = ResidualBinaryMatrix;
    uint16_t* out = matrix_.coefficients.data() + (row * matrix_.blocks() + block) * M::kCoefficients;
    const auto put = [&](int which, double value) {
      out[which] = f32_to_f16(float(value));
      if (!std::isfinite(f16_to_f32(out[which])))
        throw Error(str("a coefficient of ", value, " exceeds binary16's 65504"));
    };
    put(M::kMean, salient.mean), put(M::kScale1, salient.scale1), put(M::kScale2, salient.scale2);
    put(M::kMean0, rest.inner.mean), put(M::kScale0, rest.inner.scale);
    put(M::kMean1, rest.outer.mean), put(M::kScale1Group, rest.outer.scale);
    for (const bool is_salient : {false, true})
      for (int code = 0; code < 4; ++code)
        levels_[size_t(row)][is_salient][size_t(code)] = matrix_.value_of(row, block, is_salient, code);
  }

  ResidualBinaryMatrix& matrix_;
  const InverseFactor& factor_;
  /// Of the block at hand, by row, salient or not, and code.
  std::vector<std::array<std::array<float, 4>, 2>> levels_;
};

}  // namespace

LayerSolution solve_billm(Backend& backend, const LayerProblem& problem) {
  CHECK(problem.input);
  const InverseFactor& factor = problem.input->factor();
  ResidualBinaryMatrix matrix{.out_features = problem.out_features,
                              .in_features = problem.in_features,
                              .block_size = std::min(problem.options.block_size, problem.in_features)};
  matrix.codes.resize(size_t(matrix.out_features * matrix.in_features));
  matrix.salient.resize(size_t(matrix.in_features));
  matrix.coefficients.resize(
      size_t(matrix.out_features * matrix.blocks() * ResidualBinaryMatrix::kCoefficients));
  BillmRounder rounder(matrix, factor);
  solve_columns(backend, factor,
                {.rows = problem.out_features,
                 .weight = {problem.weight.begin(), problem.weight.end()},
                 .group_size = matrix.block_size,
                 .dynamic_groups = true},
                rounder);
  const double damping = factor.damping;
  if (problem.options.unbiased_scales)
    unbias(backend, problem.weight, problem.input->curvature(), damping, matrix);
  return {std::move(matrix), damping};
}

}  // namespace ballast
