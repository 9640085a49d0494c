// Which scales the quantizers give to groups of weights.
#pragma once

namespace ballast {

/// Largest finite binary16.
inline constexpr float kLargestScale = 65504.0f;

/// Smallest normal binary16; with half zero points twice that, for with whole zeros the same weights have half the scale
/// (AffineMatrix::with_whole_zeros).
inline float smallest_scale(bool half_zeros) {
  return half_zeros ? 0x1p-13f : 0x1p-14f;
}

inline bool valid_scale(float scale, bool half_zeros) {
  return scale >= smallest_scale(half_zeros) && scale <= kLargestScale;
}

}  // namespace ballast
