// One block of GPTQ's column walk (arXiv 2210.17323, algorithm 1, inner loop), all rows side by side. For the
// columns i of the block in turn, g = groups[i]:
//
//   code_i = min(max(round(w_i / scales[g] + h) + z − h, 0), max_code)     round: to nearest, ties to even
//   e_i = (w_i − scales[g]·(code_i − z)) / u_ii
//   w_j −= e_i · u_ij   for i < j
//
// with z = zeros[g], a multiple of 1/2, and h = z − ⌊z⌋.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct RoundColumns {
  OutputView w;       ///< f32 [rows, width]; the weights are replaced by their errors e
  TensorView u;       ///< f32 [width, width], read on the diagonal and above it
  TensorView scales;  ///< f32 [groups, rows], above 0
  TensorView zeros;   ///< f32 [groups, rows], multiples of 1/2 in [0, max_code]
  TensorView groups;  ///< i32 [width], each a row of scales; on the host
  OutputView codes;   ///< u8 [rows, width]
  int max_code = 0;   ///< 1 … 255

  static constexpr int64_t kMaxWidth = 128;

  void check() const {
    DimChecker dims("round_columns");
    dims.match(w, "w", {"rows", "width"});
    dims.match(u, "u", {"width", "width"});
    dims.match(scales, "scales", {"groups", "rows"});
    dims.match(zeros, "zeros", {"groups", "rows"});
    dims.match(groups, "groups", {"width"});
    dims.match(codes, "codes", {"rows", "width"});
    for (const TensorView* view : {static_cast<const TensorView*>(&w), &u, &scales, &zeros})
      dims.dtype(*view, "w, u, scales, zeros", {DType::f32});
    dims.dtype(groups, "groups", {DType::i32});
    dims.dtype(codes, "codes", {DType::u8});
    CHECK(w.shape[1] <= kMaxWidth, "a block has ", w.shape[1], " columns");
    CHECK(max_code >= 1 && max_code <= 255, max_code);
    for (int64_t i = 0; i < groups.shape[0]; ++i)
      CHECK(groups.as<int32_t>()[i] >= 0 && groups.as<int32_t>()[i] < scales.shape[0]);
  }
};

}  // namespace ballast
