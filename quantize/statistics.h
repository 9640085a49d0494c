// Moments of the inputs of linear layers, gathered while calibration data runs through a model.
#pragma once

#include <vector>

#include "engine/core/sums.h"

namespace ballast {

/// One shared input: q, k and v have one of these together. Sums are f64; rows are tokens.
struct Statistics {
  Statistics(int64_t features, int64_t positions, bool second_moment);

  int64_t features;
  int64_t count = 0;
  int64_t zeros = 0;           ///< elements of x that were exactly 0
  std::vector<double> sum;     ///< [features], Σ x
  std::vector<double> moment;  ///< [features, features], Σ x xᵀ; empty when not wanted
  std::vector<double>
      position_sum;  ///< [positions, features], Σ x of the tokens at each position; empty when not wanted
  std::vector<int64_t> position_count;

  /// x: f32 [tokens, features]; `positions`: i32 [tokens] in host memory.
  void add(Backend& backend, const TensorView& x, const TensorView& positions);
  /// Behind the last add: `moment` may have grown on the device.
  void settle(Backend& backend) { moment_there_.settle(backend, moment); }
  /// Share of the elements of x that were exactly 0.
  double zero_share() const { return count > 0 ? double(zeros) / (double(count) * double(features)) : 0; }
  /// E[x]
  std::vector<double> mean() const;
  /// E[x | position], zeros for a position never seen.
  std::vector<double> position_mean(int64_t position) const;
  int64_t positions() const { return int64_t(position_count.size()); }

 private:
  Sums<double> moment_there_;
};

}  // namespace ballast
