// The state of one coordinate descent (coordinate_descent.h): values, their residuals, and the three moves.
#pragma once

#include <span>
#include <vector>

#include "quantize/coordinate_descent.h"

namespace ballast {

class Descent {
 public:
  Descent(Backend& backend, std::span<const float> target, const Curvature& curvature, AffineMatrix& matrix,
          const CoordinateOptions& options);

  /// This share of mean(diag H) on the diagonal from now on.
  void set_damping(double damping);
  void recompute_residual();
  std::vector<double> objective();
  int64_t sweep();
  int64_t move_grids();
  bool refit();
  void restore_worse_rows(const AffineMatrix& start, const std::vector<double>& before,
                          std::vector<double>& after);

 private:
  // A move must lead this much (of a step) beyond the midpoint between two values: f32 residuals cannot tell
  // closer cases apart, and ties would move back and forth.
  static constexpr float kMargin = 0x1p-10f;

  struct Block;
  struct Trial {  ///< of one group of one row
    std::vector<float> residual, change;
  };
  Block gather(int64_t first, int64_t width) const;
  int64_t sweep_block(const Block& block);
  int64_t visit(int64_t row, const Block& block, float* residual, float* change);
  struct GridMove {
    int zero_point;
    float scale;
  };
  std::vector<GridMove> neighbours(int64_t row, int64_t group) const;
  double try_grid(int64_t row, int64_t group, const GridMove& grid, Trial& trial) const;
  bool move_grid(int64_t row, int64_t group, Trial& trial, Trial& best);
  void order_greedily(int64_t row, const Block& block, std::vector<uint64_t>& keys) const;
  void refit_rows(int64_t first, int64_t count, std::vector<double>& a, std::vector<double>& b);
  bool apply_scale(int64_t row, int64_t group, float scale);
  void decode();
  int64_t groups() const { return matrix_.groups(); }
  int max_code() const { return options_.max_code > 0 ? options_.max_code : matrix_.max_code(); }
  /// c̄: the code less its zero.
  float step(int64_t row, int64_t column) const {
    return float(matrix_.codes[size_t(row * n_ + column)]) - matrix_.zero(row, column / matrix_.group_size);
  }

  Backend& backend_;
  std::span<const float> target_;
  AffineMatrix& matrix_;
  CoordinateOptions options_;
  int64_t rows_, n_;
  double mean_power_ = 0, damping_ = 0;
  std::vector<double> diagonal_;  ///< [n]: of H
  std::vector<float> h_;          ///< [n, n], damped
  std::vector<float> inverse_;    ///< [n]: 1 / H_jj, 0 for a free column
  std::vector<float> power_;      ///< [n]: √H_jj
  std::vector<uint8_t> dead_;     ///< [n]
  std::vector<int32_t> order_;    ///< [n]: columns as blocks take them
  std::vector<float> scales_;     ///< as the matrix's, decoded
  std::vector<float> q_;          ///< [rows, n]
  bool off_grid_ = false;         ///< q_ still holds values that no code stands for
  std::vector<float> residual_;   ///< [rows, n]: (W − Q)·H
};

}  // namespace ballast
