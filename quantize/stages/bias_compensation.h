// Bias compensation (arXiv 2404.01892, §3): the constant that minimizes E‖y − (ŷ + c)‖² is the mean output
// error. With the same input on both sides it is (W − Q)·E[x]; nothing but mean inputs is needed.
//
//   channel, joint   c = (W − Q)·E[x]
//   drift            c = W·E[x_float] − Q·E[x]: also takes out what earlier layers' errors shifted
//   token            c over all positions but the first; c_0 − c beside it for the first: the class token of an image
//   position         c_p = (W − Q)·(E[x | p] − E[x]) beside c, one row per absolute position p
//
// Differs from the paper: it keeps one full vector per position inside the bias; here the bias holds the
// channel part, so that readers which know nothing of positions still get it, and positions hold the
// deviation.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/encodings/quantized_matrix.h"
#include "quantize/recipe.h"
#include "quantize/statistics.h"

namespace ballast {

struct CompensationResult {
  std::vector<float> channel;   ///< [out_features] to add to the bias; zeros for none
  std::vector<float> position;  ///< [positions, out_features]; empty unless Compensation::position or token
  int64_t positions = 0;
  /// E‖W·x_f + … − Q·x − c‖² / E‖Wx‖² over the calibration inputs, without and with c, where what the float
  /// model would compute is predicted from x as target·x plus a constant; 0 when no second moments were kept.
  double error_before = 0;
  double error_after = 0;
};

struct CompensationProblem {
  std::span<const float> weight;     ///< the original W, [out_features, in_features]
  std::span<const float> target;     ///< what the codes approximate: W, or W' (target.h)
  const QuantizedMatrix& quantized;  ///< Q
  const Statistics& input;           ///< of the stream that the quantized layer reads
  /// Whose mean input W is to answer on average: the float stream's where drift is to be corrected, `input` itself where
  /// W's own mean answer is wanted of a target that says nothing about it; null: the mean answer of `target` is right.
  const Statistics* reference = nullptr;
  std::span<const double> residual_drift;  ///< [out_features], E[h_f − h_q] of the stream it adds to, or empty
  std::span<const double> first_drift;     ///< the same at the first position alone, or empty
  Compensation kind = Compensation::channel;
  /// E‖Ax‖² over the calibration inputs for A f32 [rows, in_features]; needed where the input's second moment
  /// has gone elsewhere.
  std::function<double(std::span<const float> a)> power;
};
CompensationResult compensate(Backend& backend, const CompensationProblem& problem);

}  // namespace ballast
