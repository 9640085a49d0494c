// y = a − b: what rounding changed, or what one stream lost against another.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct Subtract {
  TensorView a;  ///< f32 [tokens, width]
  TensorView b;  ///< f32 [tokens, width]
  OutputView y;  ///< f32 [tokens, width]; may be a or b

  void check() const {
    DimChecker dims("subtract");
    for (const TensorView* view : {&a, &b, static_cast<const TensorView*>(&y)}) {
      dims.match(*view, "a, b, y", {"tokens", "width"});
      dims.dtype(*view, "a, b, y", {DType::f32});
    }
  }
};

}  // namespace ballast
