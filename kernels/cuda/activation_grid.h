// Rounding a value to the grid of its place (encodings/activation.h); the steps are those of ActivationGrid::round, and so are
// the bits.
#pragma once

#include <cmath>

#include "kernels/cuda/device.h"
#include "kernels/encodings/activation.h"

namespace ballast::cuda {

struct GridNumbers {
  using Kind = ActivationGrid::Kind;
  Kind kind;
  float fine, inverse_fine, coarse, inverse_coarse;
  float low, high, half;
  int levels, per_octave;

  static GridNumbers of(const ActivationGrid& grid) {
    const float coarse = std::ldexp(grid.step, grid.shift);
    return {.kind = grid.kind,
            .fine = grid.step,
            .inverse_fine = 1.0f / grid.step,
            .coarse = coarse,
            .inverse_coarse = 1.0f / coarse,
            .low = float(-grid.zero_point),
            .high = float(grid.levels() - 1 - grid.zero_point),
            .half = float(grid.levels() / 2),
            .levels = grid.levels(),
            .per_octave = grid.per_octave};
  }

  BALLAST_DEVICE float round(float x) const {
    if (x != x) return x;
    const float in_fine = dev::round_to_even(x * inverse_fine);
    const float in_coarse = dev::round_to_even(x * inverse_coarse);
    if (kind == Kind::affine) return fine * clamped(in_fine, low, high);
    if (kind == Kind::twin_sign)
      return x < 0 ? fine * clamped(in_fine, -half, 0) : coarse * clamped(in_coarse, 0, half - 1);
    if (kind == Kind::twin_size)
      return in_fine < half ? fine * clamped(in_fine, 0, half - 1) : coarse * clamped(in_coarse, 0, half - 1);
    return logarithm(x * inverse_fine);
  }

 private:
  // Mantissas of √2, 2^(1/4) and 2^(3/4), see encodings/activation.cpp.
  static constexpr uint32_t kRootTwo = 0x3504F3, kFourthRootTwo = 0x1837F0, kFourthRootEight = 0x5744FC;

  // A negative zero stays one, which is not said of max and min.
  static BALLAST_DEVICE float clamped(float code, float low, float high) {
    return code < low ? low : code > high ? high : code;
  }
  BALLAST_DEVICE float logarithm(float whole) const {
    const uint32_t bits = dev::bits_of(whole > 0 ? dev::min(whole, 1.0f) : 0.0f), mantissa = bits & 0x7FFFFFu;
    const int exponent = int(bits >> 23) - 127;
    const int code = per_octave == 1
                         ? -exponent - int(mantissa > kRootTwo)
                         : -2 * exponent - int(mantissa > kFourthRootTwo) - int(mantissa > kFourthRootEight);
    if (code >= levels - 1 || exponent < -126) return 0;
    const int halvings = per_octave == 1 ? code : (code + 1) / 2;
    // In two factors, as 2^-127 is no normal number.
    const float power = dev::float_of(uint32_t(127 - halvings / 2) << 23) *
                        dev::float_of(uint32_t(127 - (halvings - halvings / 2)) << 23);
    return fine * (per_octave == 2 && code % 2 != 0 ? power * 1.41421356237f : power);
  }
};

}  // namespace ballast::cuda
