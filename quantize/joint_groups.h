// The column walk for methods whose groups of columns begin for all rows at once: because rows share what is
// stored for a group (SpQR) or choose it together (BiLLM).
#pragma once

#include "quantize/column_solver.h"

namespace ballast {

class JointGroupRounder : public ColumnRounder {
 public:
  void walk(Backend& backend, const ColumnBlock& block) final;
  void start_group(int64_t row, int64_t group, std::span<const float> weights) final;

 protected:
  /// Before the first column of a group; `weights`: f32 [rows, columns of the group], holding all earlier
  /// errors.
  virtual void start_groups(Backend& backend, int64_t group, const TensorView& weights) = 0;
};

}  // namespace ballast
