// Rows of f32 kept in half the memory: binary16 values and one power of two per row, so that no row overflows
// or loses its small values, whatever its magnitude.
//
//   x[row][i] ≈ scales[row] · halves[row][i],   |error| ≤ 2⁻¹¹·|x[row][i]| + 2⁻³⁹·max |x[row]|
//
// (for rows whose largest magnitude is at least 2⁻⁹⁹). The scale brings the row's largest rounded magnitude into
// [2¹⁴, 2¹⁵), so storing what was loaded gives the same bits. A row with an infinity or a NaN keeps it.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct StoreHalfRows {
  TensorView x;       ///< f32 [rows, width]
  OutputView halves;  ///< f16 [rows, width]
  OutputView scales;  ///< f32 [rows]

  void check() const;
};

struct LoadHalfRows {
  TensorView halves;  ///< f16 [rows, width]
  TensorView scales;  ///< f32 [rows]
  OutputView x;       ///< f32 [rows, width]

  void check() const;
};

namespace half_rows {

inline void check(const char* op, const TensorView& x, const TensorView& halves, const TensorView& scales) {
  DimChecker dims(op);
  dims.match(x, "x", {"rows", "width"});
  dims.match(halves, "halves", {"rows", "width"});
  dims.match(scales, "scales", {"rows"});
  dims.dtype(x, "x", {DType::f32});
  dims.dtype(halves, "halves", {DType::f16});
  dims.dtype(scales, "scales", {DType::f32});
}

}  // namespace half_rows

inline void StoreHalfRows::check() const {
  half_rows::check("store_half_rows", x, halves, scales);
}
inline void LoadHalfRows::check() const {
  half_rows::check("load_half_rows", x, halves, scales);
}

}  // namespace ballast
