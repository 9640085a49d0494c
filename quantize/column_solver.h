// Column-by-column rounding with error feedback (GPTQ, arXiv 2210.17323, §3, algorithm 1): what GPTQ, SpQR
// and BiLLM share.
//
// For the second moment H of a layer's inputs and H⁻¹ = UᵀU with U upper triangular, columns
// are taken in turn:
//   e = (w_i − q_i) / U_ii,   w_j −= e · U_ij for j > i
// inside a block of columns at once, and for the columns behind the block by one product (equation 4).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "quantize/curvature.h"

namespace ballast {

struct FactorOptions {
  double damping = 0.01;
  bool act_order = false;  ///< columns by descending diag H
};

/// U of one shared input, for the columns in `order`.
class InverseFactor {
 public:
  int64_t size = 0;
  std::vector<int32_t> order;  ///< order[i]: original column of solver column i
  std::vector<uint8_t> dead;   ///< by original column: the input is always zero
  double damping = 0;          ///< the share of mean(diag H) that was needed

  /// out: f32 [count, size − first], the rows from `first` on of U, from column `first` on.
  void rows(int64_t first, int64_t count, float* out) const {
    for (int64_t i = 0; i < count; ++i) row(first + i, first, out + i * (size - first));
  }
  /// out: f32 [size − first], row i of U from column `first` on.
  void row(int64_t i, int64_t first, float* out) const;
  double diagonal(int64_t i) const {
    return u_.empty() ? shared_[size_t(i * size + i)] : double(u_[size_t(i * size + i)]);
  }
  /// H in solver order, while this factor lives in H's own matrix: U takes the diagonal and what is above it, H
  /// keeps the rest.
  bool holds_curvature() const { return holds_curvature_; }
  SymmetricView curvature() const { return {shared_.data(), curvature_diagonal_.data(), 1, size}; }
  /// The same order and dead columns with another matrix: f32 [size, size], of which what is above the diagonal is read.
  InverseFactor with(std::vector<float> u) const;
  /// Gives H back, whole, to the Curvature it came from, and keeps U as f32 in memory of its own.
  void give_back(Backend& backend, Curvature& curvature);

 private:
  friend InverseFactor factorize(Backend&, Curvature&&, const FactorOptions&, const std::string&);

  std::vector<double> shared_;              ///< [size, size]; U on and above the diagonal
  std::vector<double> curvature_diagonal_;  ///< of H, in solver order
  bool holds_curvature_ = false;
  std::vector<float> u_;  ///< [size, size], once H was given back
};

/// Dead columns get 1 on the diagonal; when H is not positive definite the damping is raised tenfold, up to
/// 10; then Error naming `layer`. Error as well when a moment is not finite. curvature.h is moved out: it becomes
/// the factor's matrix.
InverseFactor factorize(Backend& backend, Curvature&& curvature, const FactorOptions& options,
                        const std::string& layer);

/// Columns [start, stop) of the walk, all rows; `work` holds the columns in solver order.
struct ColumnBlock {
  int64_t start, stop;
  OutputView work;  ///< f32 [rows, size]; earlier errors are fed back into columns from `start` on
  TensorView u;     ///< f32 [stop − start, size − start]
  const InverseFactor& factor;
  int64_t group_size;
  bool dynamic_groups;

  OutputView columns(int64_t first, int64_t last) const;  ///< of work
  /// Rows [row, row_end) of the factor, columns [first, last).
  TensorView factors(int64_t row, int64_t row_end, int64_t first, int64_t last) const;
};

/// Rounds one weight. `row` and `column` are original indices; `weight` has had earlier errors fed back into
/// it. Called for one row from one thread in the order of the columns.
struct ColumnRounder {
  virtual ~ColumnRounder() = default;
  /// Before the first column of `count` consecutive solver columns that share a grid; `weights` is the row's
  /// current values of these columns. Only called when groups are not static.
  virtual void start_group(int64_t row, int64_t group, std::span<const float> weights) = 0;
  /// Returns the value that was stored.
  virtual float round(int64_t row, int64_t column, float weight) = 0;
  /// Rounds a whole block and leaves the errors e in its columns. This is the walk by `round`, row by row; a
  /// method whose rounding is an op runs that instead.
  virtual void walk(Backend& backend, const ColumnBlock& block);
};

struct ColumnProblem {
  int64_t rows = 0;
  std::vector<float> weight;   ///< [rows, size] in original column order; consumed
  int64_t group_size = 0;      ///< columns per group
  bool dynamic_groups = true;  ///< call start_group as groups begin; needs the natural column order
};

void solve_columns(Backend& backend, const InverseFactor& factor, ColumnProblem problem,
                   ColumnRounder& rounder);

}  // namespace ballast
