// Affine grouped encoding, canonical form: what every method with a uniform grid emits and what files store.
//
//   W[row][column] = scale[row][g] * (code[row][column] - zero[row][g]),   g = column / group_size
//   zero = zero_point, or with half zero points (zero_point + 2^(bits-1)) / 2
//
// Half zero points are multiples of 1/2 around the middle of the codes. Few levels need them: at 2 bits whole ones allow
// {-1, 0, 1, 2} but not {-1.5, -0.5, 0.5, 1.5}, which round normally distributed weights with a fifth less error at the
// same bits. Published layouts know whole zero points only.
//
// Scales are binary16 values, so the product above is exact in binary32 (11 + 9 significant bits).
// Backends repack this into their kernel layout when a model is loaded; kernel layouts are never stored.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/encodings/views.h"

namespace ballast {

/// Twice the zero that a stored zero point stands for; at most 2^bits − 1 + 2^(bits − 1) with half ones.
constexpr int twice_zero(int zero_point, int bits, bool half_zeros) {
  return half_zeros ? zero_point + (1 << (bits - 1)) : 2 * zero_point;
}

struct AffineMatrix {
  int bits = 0;  ///< 2, 3, 4 or 8
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;            ///< divides in_features; in_features itself for one group per row
  std::vector<uint8_t> codes;        ///< [out_features, in_features], each < 2^bits
  std::vector<uint16_t> scales;      ///< binary16 [out_features, groups()], finite and > 0
  std::vector<uint8_t> zero_points;  ///< [out_features, groups()], each < 2^bits
  bool half_zeros = false;           ///< half zero points, not with 8 bits

  int64_t groups() const { return in_features / group_size; }
  int max_code() const { return (1 << bits) - 1; }

  float scale(int64_t row, int64_t group) const { return f16_to_f32(scales[size_t(row * groups() + group)]); }
  /// What a zero point stands for.
  float zero_of(int zero_point) const { return 0.5f * float(twice_zero(zero_point, bits, half_zeros)); }
  float zero(int64_t row, int64_t group) const {
    return zero_of(zero_points[size_t(row * groups() + group)]);
  }
  float value(int64_t row, int64_t column) const {
    const int64_t group = column / group_size;
    return scale(row, group) * (float(codes[size_t(row * in_features + column)]) - zero(row, group));
  }
  /// Writes the decoded row, `in_features` floats.
  void decode_row(int64_t row, float* out) const;
  /// The same weights with whole zero points, a bit wider (from 4 bits: 8): codes and zeros doubled, scales halved.
  AffineMatrix with_whole_zeros() const;
  /// Sizes, code range and scale sanity. Throws Error starting with `name`.
  void check(const std::string& name) const;
  AffineView facts() const { return {bits, out_features, in_features, group_size, half_zeros, false, {}}; }
  double bits_per_weight() const { return facts().bits_per_weight(); }
  bool operator==(const AffineMatrix&) const = default;
};

}  // namespace ballast
