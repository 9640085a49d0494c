// y[t] = table[ids[t]], or y[t] += table[ids[t]] when accumulating.
#pragma once

#include "kernels/encodings/views.h"
#include "kernels/view.h"

namespace ballast {

template <class Encoding>
struct Embedding {
  TensorView ids;  ///< i32 [tokens], each within the table
  Encoding table;  ///< [vocab, hidden]: the same packed form that Linear reads, so a tied head shares it
  bool accumulate = false;
  OutputView y;  ///< f32 [tokens, hidden]

  void check() const {
    DimChecker dims("embedding");
    dims.bind("hidden", table.in_features, "table");
    dims.match(ids, "ids", {"tokens"});
    dims.match(y, "y", {"tokens", "hidden"});
    dims.dtype(ids, "ids", {DType::i32});
    dims.dtype(y, "y", {DType::f32});
    CHECK(table.data, "embedding: table was not packed");
    if (ids.device != Device::cpu) return;
    for (int64_t i = 0; i < ids.shape[0]; ++i)
      CHECK(ids.as<int32_t>()[i] >= 0 && ids.as<int32_t>()[i] < table.out_features, "embedding: id ",
            ids.as<int32_t>()[i], " outside a table of ", table.out_features);
  }
};

}  // namespace ballast
