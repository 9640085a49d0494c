// How the values at one place of a model are rounded to codes: a grid for the whole tensor, its numbers fixed when the
// model is quantized.
//
//   affine      x̂ = s · (clamp(round(x/s) + z, 0, 2^b − 1) − z)
//   twin_sign   two steps, fine for negative values, s, and coarse for the others, s·2^m:
//               x̂ = s · clamp(round(x/s), −2^(b−1), −1 or 0) or s·2^m · clamp(round(x/(s·2^m)), 0, 2^(b−1) − 1)
//   twin_size   values of 0 and above: s while round(x/s) < 2^(b−1), else s·2^m, each with 2^(b−1) codes
//   logarithm   values of 0 and above: x̂ = s · 2^(−c/n), c = round(−n·log2(x/s)), n = 1 or 2; the last of the 2^b codes
//               stands for 0
//
// Twin grids: PTQ4ViT (arXiv 2111.12293, §3.2), for values behind GELU and softmax; the ratio 2^m lets integer products
// of both ranges be joined by a shift. Logarithm: FQ-ViT (arXiv 2111.13824), base √2 RepQ-ViT (2212.08254).
// Ties go to even, infinities to the last code, a NaN stays one. x/s is x · (1/s), both f32.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/encodings/views.h"

namespace ballast {

struct ActivationGrid {
  enum class Kind : uint8_t { affine, twin_sign, twin_size, logarithm };

  Kind kind = Kind::affine;
  int bits = 8;        ///< 2 to 8
  float step = 1;      ///< s, finite and normal, > 0
  int zero_point = 0;  ///< affine: z, 0 to 2^bits − 1
  int shift = 0;       ///< twin: m, 0 to kMaxShift
  int per_octave = 1;  ///< logarithm: n

  static constexpr int kMaxShift = 20;

  int levels() const { return 1 << bits; }
  /// x̂
  float round(float x) const;
  /// Error starting with `name` when a number is out of range.
  void check(const std::string& name) const;
  bool operator==(const ActivationGrid&) const = default;
};

/// "affine", …
const char* name_of(ActivationGrid::Kind kind);
std::optional<ActivationGrid::Kind> activation_kind(const std::string& name);

/// The codes of such an input as integers x̂ = s · (d + offset), low ≤ d ≤ high, where they fit the products of a
/// weight: bytes, or words beside codes of 8 bits.
struct IntegerCodes {
  int offset = 0, low = 0, high = 0;
  bool words = false;  ///< d needs 16 bits
};
/// Empty where a layer of this weight decodes its input instead.
std::optional<IntegerCodes> integer_codes(const ActivationGrid& grid, const AffineView& weight);
template <class View>
std::optional<IntegerCodes> integer_codes(const ActivationGrid&, const View&) {
  return std::nullopt;
}

}  // namespace ballast
