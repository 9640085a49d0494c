// out += aᵀ · b over tokens: second moments of calibration inputs (a = b), or cross moments.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct SecondMoment {
  TensorView a;  ///< f32 [tokens, rows]
  TensorView b;  ///< f32 [tokens, columns]; the same view as a for a symmetric result
  double* out =
      nullptr;  ///< f64 [rows, columns], row-major; summed in f32 over at most 1024 tokens, then added
  float* out_f32 = nullptr;  ///< the same in f32, instead of `out`: for sums of small differences
  Device out_device =
      Device::cpu;  ///< where out or out_f32 is: on the backend's device, sums need not travel

  void check() const {
    DimChecker dims("second_moment");
    dims.match(a, "a", {"tokens", "rows"});
    dims.match(b, "b", {"tokens", "columns"});
    dims.dtype(a, "a", {DType::f32});
    dims.dtype(b, "b", {DType::f32});
    CHECK((out != nullptr) != (out_f32 != nullptr), "second_moment: one of out and out_f32");
  }
};

}  // namespace ballast
