#include "quantize/methods/spqr.h"

#include <algorithm>
#include <cmath>

#include "quantize/joint_groups.h"

namespace ballast {
namespace {

// A grid with a real zero point: value = scale · (code − zero).
struct RealGrid {
  float scale = 0, zero = 0;
  float low = 0, high = 0;  ///< the range it was made for

  float code(float weight, float max_code) const {
    return scale == 0 ? 0 : std::clamp(std::nearbyint(weight / scale + zero), 0.0f, max_code);
  }
  float round(float weight, float max_code) const { return scale * (code(weight, max_code) - zero); }
};

RealGrid grid_of(float low, float high, float max_code) {
  if (low == high) low = std::min(low, 0.0f), high = std::max(high, 0.0f);
  const float scale = (high - low) / max_code;
  return {scale, scale == 0 ? 0 : -low / scale, low, high};
}

template <class Include>
RealGrid fit_range(std::span<const float> weights, float max_code, Include&& include) {
  float low = INFINITY, high = -INFINITY;
  for (size_t i = 0; i < weights.size(); ++i)
    if (include(i)) low = std::min(low, weights[i]), high = std::max(high, weights[i]);
  return low > high ? RealGrid{} : grid_of(low, high, max_code);
}

double square(double value) {
  return value * value;
}

uint16_t half(float value, const char* what) {
  const uint16_t bits = f32_to_f16(value);
  if (!std::isfinite(f16_to_f32(bits))) throw Error(str(what, " ", value, " exceeds binary16's 65504"));
  return bits;
}

class SpqrRounder final : public JointGroupRounder {
 public:
  SpqrRounder(SparseOutlierMatrix& matrix, const InverseFactor& factor, double threshold)
      : matrix_(matrix),
        factor_(factor),
        threshold_(threshold),
        max_code_(float((1 << matrix.bits) - 1)),
        grids_(static_cast<size_t>(matrix.out_features)),
        outliers_(static_cast<size_t>(matrix.out_features)) {}

  float round(int64_t row, int64_t column, float weight) override {
    const RealGrid& grid = grids_[size_t(row)];
    const float code = grid.code(weight, max_code_);
    matrix_.codes[size_t(row * matrix_.in_features + column)] = uint8_t(code);
    const float value = grid.scale * (code - grid.zero);
    if (!(square((double(weight) - double(value)) / factor_.diagonal(column)) > threshold_)) return value;
    const uint16_t bits = half(weight, "an outlier of");
    outliers_[size_t(row)].push_back({uint16_t(column), bits});
    return f16_to_f32(bits);
  }

  void store_outliers() {
    matrix_.outlier_rows.push_back(0);
    for (const auto& row : outliers_) {
      for (const Outlier& outlier : row) {
        matrix_.outlier_columns.push_back(outlier.column);
        matrix_.outlier_values.push_back(outlier.value);
      }
      matrix_.outlier_rows.push_back(uint32_t(matrix_.outlier_columns.size()));
    }
  }

 protected:
  void start_groups(Backend& backend, int64_t group, const TensorView& weights) override {
    backend.parallel_for(matrix_.tiles(), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * SparseOutlierMatrix::kStatRows;
        const int64_t last = std::min(matrix_.out_features, first + SparseOutlierMatrix::kStatRows);
        for (int64_t row = first; row < last; ++row)
          grids_[size_t(row)] =
              fit_row({weights.row(row), size_t(weights.shape[1])}, group * matrix_.group_size);
        quantize_statistics(tile, group, first, last);
      }
    });
  }

 private:
  struct Outlier {
    uint16_t column, value;
  };

  double sensitivity(float weight, float value, int64_t column) const {
    return square((double(weight) - double(value)) / factor_.diagonal(column));
  }

  double group_error(std::span<const float> weights, int64_t column, const RealGrid& grid,
                     size_t without) const {
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i)
      if (i != without)
        sum += sensitivity(weights[i], grid.round(weights[i], max_code_), column + int64_t(i));
    return sum;
  }

  // Leave-one-out: by how much the others gain when the grid need not hold weight i, and its own error besides.
  double gain_without(std::span<const float> weights, int64_t column, const RealGrid& grid, double error,
                      size_t i) const {
    if (weights[i] != grid.low && weights[i] != grid.high)
      return sensitivity(weights[i], grid.round(weights[i], max_code_), column + int64_t(i));
    const RealGrid others = fit_range(weights, max_code_, [i](size_t k) { return k != i; });
    return error - group_error(weights, column, others, i);
  }

  RealGrid fit_row(std::span<const float> weights, int64_t column) const {
    const RealGrid all = fit_range(weights, max_code_, [](size_t) { return true; });
    if (std::isinf(threshold_)) return all;
    const double error = group_error(weights, column, all, weights.size());
    std::vector<uint8_t> outlier(weights.size());
    for (size_t i = 0; i < weights.size(); ++i)
      outlier[i] = gain_without(weights, column, all, error, i) > threshold_;
    // The mean of the rest lies within the range of the rest: leaving outliers out is replacing them by it.
    if (std::count(outlier.begin(), outlier.end(), 0) == 0) return all;
    return fit_range(weights, max_code_, [&](size_t i) { return !outlier[i]; });
  }

  // Second level (§4.3): scales, then zero points of the rows of one tile, min-max to stat_bits. What is
  // decoded from the file is what the rows round with.
  void quantize_statistics(int64_t tile, int64_t group, int64_t first, int64_t last) {
    const int64_t groups = matrix_.groups();
    uint16_t* stats = matrix_.stats.data() + (tile * groups + group) * 4;
    quantize_level(first, last, group, &RealGrid::scale, "a scale of", stats, matrix_.scale_codes);
    for (int64_t row = first; row < last; ++row) {
      RealGrid& grid = grids_[size_t(row)];
      grid.scale = matrix_.scale(row, group);
      const float middle = (grid.low + grid.high) / 2;
      grid.zero = max_code_ / 2 - (grid.scale == 0 ? 0 : middle / grid.scale);
    }
    quantize_level(first, last, group, &RealGrid::zero, "a zero point of", stats + 2, matrix_.zero_codes);
    for (int64_t row = first; row < last; ++row) grids_[size_t(row)].zero = matrix_.zero(row, group);
  }

  void quantize_level(int64_t first, int64_t last, int64_t group, float RealGrid::*field, const char* what,
                      uint16_t* stats, std::vector<uint8_t>& codes) {
    float low = INFINITY, high = -INFINITY;
    for (int64_t row = first; row < last; ++row) {
      low = std::min(low, grids_[size_t(row)].*field);
      high = std::max(high, grids_[size_t(row)].*field);
    }
    const float top = float((1 << matrix_.stat_bits) - 1);
    stats[0] = half(low, what);
    low = f16_to_f32(stats[0]);
    stats[1] = half(std::max(high - low, 0.0f) / top, what);
    const float step = f16_to_f32(stats[1]);
    for (int64_t row = first; row < last; ++row) {
      const float code = step == 0 ? 0 : std::nearbyint((grids_[size_t(row)].*field - low) / step);
      codes[size_t(row * matrix_.groups() + group)] = uint8_t(std::clamp(code, 0.0f, top));
    }
  }

  SparseOutlierMatrix& matrix_;
  const InverseFactor& factor_;
  double threshold_;
  float max_code_;
  std::vector<RealGrid> grids_;  ///< [rows], of the group at hand
  std::vector<std::vector<Outlier>> outliers_;
};

// τ of §4.2's released form; a dead input's weights count as zeros.
double outlier_threshold(Backend& backend, const LayerProblem& problem, const InverseFactor& factor) {
  const int64_t rows = problem.out_features, n = problem.in_features;
  if (rows < 2) return INFINITY;
  std::vector<double> share(static_cast<size_t>(n));
  backend.parallel_for(n, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      if (factor.dead[size_t(j)]) continue;
      double sum = 0, squares = 0;
      for (int64_t row = 0; row < rows; ++row) sum += double(problem.weight[size_t(row * n + j)]);
      const double mean = sum / double(rows);
      for (int64_t row = 0; row < rows; ++row)
        squares += square(double(problem.weight[size_t(row * n + j)]) - mean);
      share[size_t(j)] = squares / double(rows - 1) / square(factor.diagonal(j));
    }
  });
  double sum = 0;
  for (double value : share) sum += value;
  return problem.options.outlier_threshold * sum / double(n);
}

}  // namespace

LayerSolution solve_spqr(Backend& backend, const LayerProblem& problem) {
  CHECK(problem.input);
  const InverseFactor& factor = problem.input->factor();
  const int64_t rows = problem.out_features, n = problem.in_features;
  if (n > 65536) throw Error(str(problem.name, ": ", n, " inputs, spqr's outlier columns count to 65536"));
  SparseOutlierMatrix matrix{.bits = problem.grid.bits,
                             .stat_bits = problem.options.stat_bits,
                             .out_features = rows,
                             .in_features = n,
                             .group_size = problem.grid.group_size};
  matrix.codes.resize(size_t(rows * n));
  matrix.scale_codes.resize(size_t(rows * matrix.groups()));
  matrix.zero_codes.resize(matrix.scale_codes.size());
  matrix.stats.resize(size_t(matrix.tiles() * matrix.groups() * 4));
  SpqrRounder rounder(matrix, factor, outlier_threshold(backend, problem, factor));
  solve_columns(backend, factor,
                {.rows = rows,
                 .weight = {problem.weight.begin(), problem.weight.end()},
                 .group_size = matrix.group_size,
                 .dynamic_groups = true},
                rounder);
  rounder.store_outliers();
  return {std::move(matrix), factor.damping};
}

}  // namespace ballast
