// y[i] = x[rows[i]]: picks the rows whose logits are wanted.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct GatherRows {
  TensorView x;     ///< f32 [tokens, width]
  TensorView rows;  ///< i32 [picked], each within x
  OutputView y;     ///< f32 [picked, width]

  void check() const {
    DimChecker dims("gather");
    dims.match(x, "x", {"tokens", "width"});
    dims.match(rows, "rows", {"picked"});
    dims.match(y, "y", {"picked", "width"});
    dims.dtype(rows, "rows", {DType::i32});
    dims.dtype(x, "x", {DType::f32});
  }
};

}  // namespace ballast
