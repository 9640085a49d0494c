#include "kernels/encodings/activation.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/check.h"

namespace ballast {
namespace {

using Kind = ActivationGrid::Kind;
constexpr std::pair<Kind, const char*> kNames[] = {{Kind::affine, "affine"},
                                                   {Kind::twin_sign, "twin_sign"},
                                                   {Kind::twin_size, "twin_size"},
                                                   {Kind::logarithm, "logarithm"}};

// Mantissas of √2, 2^(1/4) and 2^(3/4): between these and the next number lies the middle of two levels' logarithms.
constexpr uint32_t kRootTwo = 0x3504F3, kFourthRootTwo = 0x1837F0, kFourthRootEight = 0x5744FC;
constexpr float kRootTwoValue = 1.41421356237f;

float clamped(float code, float low, float high) {
  if (code < low) return low;
  return code > high ? high : code;
}

}  // namespace

const char* name_of(Kind kind) {
  for (const auto& [value, name] : kNames)
    if (value == kind) return name;
  return "?";
}

std::optional<Kind> activation_kind(const std::string& name) {
  for (const auto& [value, known] : kNames)
    if (name == known) return value;
  return std::nullopt;
}

float ActivationGrid::round(float x) const {
  if (std::isnan(x)) return x;
  const float half = float(levels() / 2);
  const float fine = step, coarse = std::ldexp(step, shift);
  const float in_fine = std::nearbyint(x * (1.0f / fine)), in_coarse = std::nearbyint(x * (1.0f / coarse));
  switch (kind) {
    case Kind::affine:
      return fine * clamped(in_fine, float(-zero_point), float(levels() - 1 - zero_point));
    case Kind::twin_sign:
      return x < 0 ? fine * clamped(in_fine, -half, 0) : coarse * clamped(in_coarse, 0, half - 1);
    case Kind::twin_size:
      return in_fine < half ? fine * clamped(in_fine, 0, half - 1) : coarse * clamped(in_coarse, 0, half - 1);
    case Kind::logarithm:
      break;
  }
  // round(n·log2 of the ratio): the exponent, and how far the mantissa is beyond the middles between two levels.
  const float whole = x * (1.0f / fine), ratio = whole > 0 ? clamped(whole, 0, 1) : 0;
  const uint32_t bits_of = std::bit_cast<uint32_t>(ratio), mantissa = bits_of & 0x7FFFFFu;
  const int exponent = int(bits_of >> 23) - 127;
  const int code = per_octave == 1
                       ? -exponent - int(mantissa > kRootTwo)
                       : -2 * exponent - int(mantissa > kFourthRootTwo) - int(mantissa > kFourthRootEight);
  if (code >= levels() - 1 || exponent < -126) return 0;
  const float power = std::ldexp(1.0f, -(per_octave == 1 ? code : (code + 1) / 2));
  return fine * (per_octave == 2 && code % 2 != 0 ? power * kRootTwoValue : power);
}

void ActivationGrid::check(const std::string& name) const {
  const auto fail = [&](const char* what, auto got, const char* expected) {
    throw Error(str(name, ": ", what, " is ", got, ", expected ", expected));
  };
  if (bits < 2 || bits > 8) fail("the width of its codes", bits, "2 to 8 bits");
  if (!std::isnormal(step) || step <= 0 || !std::isnormal(1 / step))
    fail("the step", step, "a positive normal number");
  if (zero_point < 0 || zero_point >= levels()) fail("the zero point", zero_point, "a code");
  if (kind != Kind::affine && zero_point != 0) fail("the zero point", zero_point, "0 for this kind of grid");
  if (shift < 0 || shift > kMaxShift) fail("the shift", shift, "0 to 20");
  if (!std::isfinite(std::ldexp(step, shift)))
    fail("the coarse step", std::ldexp(step, shift), "a finite number");
  if (kind != Kind::twin_sign && kind != Kind::twin_size && shift != 0)
    fail("the shift", shift, "0 for this kind of grid");
  if (per_octave != 1 && per_octave != 2) fail("the number of levels per octave", per_octave, "1 or 2");
  if (kind != Kind::logarithm && per_octave != 1)
    fail("the number of levels per octave", per_octave, "none for this kind of grid");
}

std::optional<IntegerCodes> integer_codes(const ActivationGrid& grid, const AffineView& weight) {
  if (weight.by_columns || weight.group_size % 4 != 0) return std::nullopt;
  // Exact in 32 bits whatever the codes are.
  const auto fits = [&](int64_t largest) {
    return largest * ((int64_t(1) << weight.bits) - 1) * weight.group_size <
           int64_t(1) << (weight.half_zeros ? 30 : 31);
  };
  if (grid.kind == Kind::affine) {
    const int low = -grid.zero_point, high = grid.levels() - 1 - grid.zero_point;
    const int offset = high > 127 ? high - 127 : low < -128 ? low + 128 : 0;
    if (!fits(512)) return std::nullopt;
    return IntegerCodes{offset, low - offset, high - offset, false};
  }
  const int64_t half = grid.levels() / 2, most = (half - 1) << grid.shift;
  if (grid.kind != Kind::twin_sign || weight.bits != 8 || most > 32767 || !fits(most + half))
    return std::nullopt;
  return IntegerCodes{0, int(-half), int(most), true};
}

}  // namespace ballast
