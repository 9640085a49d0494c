// Sums over tokens that statistics keep beside second moments:
//
//   sums[i] += Σ_t x[t][i]      position_sums[p][i] += Σ x[t][i] over the t with positions[t] = p      zeros += x that are 0
#pragma once

#include "kernels/view.h"

namespace ballast {

struct ColumnSums {
  TensorView x;                     ///< f32 [tokens, width]
  TensorView positions;             ///< i32 [tokens], at least 0; in host memory
  double* sums = nullptr;           ///< f64 [width], in host memory as all that follows
  double* position_sums = nullptr;  ///< f64 [position_count, width]; later positions are left out
  int64_t position_count = 0;
  int64_t* zeros = nullptr;

  void check() const {
    DimChecker dims("column_sums");
    dims.match(x, "x", {"tokens", "width"});
    dims.match(positions, "positions", {"tokens"});
    dims.dtype(x, "x", {DType::f32});
    dims.dtype(positions, "positions", {DType::i32});
    CHECK(sums && zeros && (position_sums || position_count == 0));
  }
};

}  // namespace ballast
