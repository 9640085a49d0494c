// Affine grouped encoding, canonical form: what every method with a uniform grid emits and what files store.
//
//   W[row][column] = scale[row][g] * (code[row][column] - zero_point[row][g]),   g = column / group_size
//
// Scales are binary16 values, so the product above is exact in binary32 (11 + 8 significant bits).
// Backends repack this into their kernel layout when a model is loaded; kernel layouts are never stored.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/check.h"
#include "kernels/dtype.h"
#include "kernels/encodings/views.h"

namespace ballast {

struct AffineMatrix {
  int bits = 0;  ///< 2, 3, 4 or 8
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;            ///< divides in_features; in_features itself for one group per row
  std::vector<uint8_t> codes;        ///< [out_features, in_features], each < 2^bits
  std::vector<uint16_t> scales;      ///< binary16 [out_features, groups()], finite and > 0
  std::vector<uint8_t> zero_points;  ///< [out_features, groups()], each < 2^bits

  int64_t groups() const { return in_features / group_size; }
  int max_code() const { return (1 << bits) - 1; }

  float scale(int64_t row, int64_t group) const { return f16_to_f32(scales[size_t(row * groups() + group)]); }
  float value(int64_t row, int64_t column) const {
    const int64_t at = row * groups() + column / group_size;
    return f16_to_f32(scales[size_t(at)]) *
           float(int(codes[size_t(row * in_features + column)]) - int(zero_points[size_t(at)]));
  }
  /// Writes the decoded row, `in_features` floats.
  void decode_row(int64_t row, float* out) const;
  /// Sizes, code range and scale sanity. Throws Error starting with `name`.
  void check(const std::string& name) const;
  AffineView facts() const { return {bits, out_features, in_features, group_size, false, {}}; }
  double bits_per_weight() const { return facts().bits_per_weight(); }
  bool operator==(const AffineMatrix&) const = default;
};

}  // namespace ballast
