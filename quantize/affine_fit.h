// Scale and zero point of one group of weights (GPTQ's grid, arXiv 2210.17323, released code: min-max, the
// range always holding 0).
//
// Differs from the released code: the scale is rounded to binary16 first, and zero point and codes are chosen
// for the rounded scale, because that is the scale the file stores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "quantize/recipe.h"

namespace ballast {

/// Nearest code to `steps` from the zero, a multiple of 1/2. Ties go to the even number of steps from the zero, or of steps
/// and a half.
inline float nearest_code(float steps, float zero, float max_code) {
  const float whole = std::floor(zero), half = zero - whole;
  return std::clamp(std::nearbyint(steps + half) + whole, 0.0f, max_code);
}

struct Grid {
  float scale = 1;     ///< a normal binary16 value
  int zero_point = 0;  ///< as stored
  float zero = 0;      ///< what it stands for
  int max_code = 0;

  /// nearest_code
  int code(float weight) const;
  float value(int code) const { return scale * (float(code) - zero); }
  float round(float weight) const { return value(code(weight)); }
};

/// Grid for the given weights. Throws Error when a weight is not finite or its range overflows binary16.
Grid fit_grid(std::span<const float> weights, const GridOptions& options);

/// The same with the scale given (a normal binary16 value): only the zero point follows the weights' range.
Grid fit_zero_point(std::span<const float> weights, float scale, const GridOptions& options);

}  // namespace ballast
