// Loss of a classifier and its gradient, per row, p = softmax(logits):
//   loss = −log p[target]                 d logits = scale · (p − onehot(target))
//   loss = Σ_i r[i] · log(r[i] / p[i])    d logits = scale · (p − r),   r = softmax(teacher)
#pragma once

#include "kernels/view.h"

namespace ballast {

struct CrossEntropyBackward {
  TensorView targets;      ///< i32 [rows], or empty; a negative one takes its row out: loss and gradient 0
  TensorView teacher;      ///< f32 [rows, vocab], or empty: logits or log-probabilities, instead of targets
  float scale = 1;         ///< of the gradient
  OutputView logits;       ///< f32 [rows, vocab]; replaced by their gradient
  double* loss = nullptr;  ///< f64 [rows], host memory; unscaled

  void check() const {
    DimChecker dims("cross_entropy");
    dims.match(logits, "logits", {"rows", "vocab"});
    dims.dtype(logits, "logits", {DType::f32});
    CHECK(bool(targets) != bool(teacher), "cross_entropy: either targets or a teacher");
    if (targets) {
      dims.match(targets, "targets", {"rows"});
      dims.dtype(targets, "targets", {DType::i32});
    } else {
      dims.match(teacher, "teacher", {"rows", "vocab"});
      dims.dtype(teacher, "teacher", {DType::f32});
    }
    CHECK(loss != nullptr);
  }
};

}  // namespace ballast
