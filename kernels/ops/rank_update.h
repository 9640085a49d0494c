// w −= e · u: the lazy batch update of GPTQ (arXiv 2210.17323, §3.3, equation 4), or w += e · u: any other dense
// product of the quantizer, and dX += dY · W on the way back through a linear layer.
#pragma once

#include "kernels/view.h"

namespace ballast {

struct RankUpdate {
  TensorView e;  ///< f32 [rows, rank]
  TensorView u;  ///< f32 [rank, columns]
  OutputView w;  ///< f32 [rows, columns]
  bool add = false;

  void check() const {
    DimChecker dims("rank_update");
    dims.match(e, "e", {"rows", "rank"});
    dims.match(u, "u", {"rank", "columns"});
    dims.match(w, "w", {"rows", "columns"});
    for (const TensorView* view : {&e, &u, static_cast<const TensorView*>(&w)})
      dims.dtype(*view, "e, u, w", {DType::f32});
  }
};

}  // namespace ballast
