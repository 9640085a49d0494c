#include "kernels/encodings/affine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ballast {
namespace {

// The bits that any of the values has. Eight at a time: there are as many values as weights.
int any_bits(const std::vector<uint8_t>& values) {
  uint64_t all = 0;
  size_t i = 0;
  for (uint64_t eight; i + 8 <= values.size(); i += 8) {
    std::memcpy(&eight, values.data() + i, 8);
    all |= eight;
  }
  for (; i < values.size(); ++i) all |= values[i];
  all |= all >> 32;
  all |= all >> 16;
  return int((all | all >> 8) & 0xff);
}

}  // namespace

void AffineMatrix::decode_row(int64_t row, float* out) const {
  const uint8_t* code = codes.data() + row * in_features;
  for (int64_t group = 0; group < groups(); ++group) {
    const float step = scale(row, group);
    const float offset = zero(row, group);
    for (int64_t column = group * group_size; column < (group + 1) * group_size; ++column)
      out[column] = step * (float(code[column]) - offset);
  }
}

AffineMatrix AffineMatrix::with_whole_zeros() const {
  if (!half_zeros) return *this;
  AffineMatrix out = *this;
  out.bits = bits == 4 ? 8 : bits + 1;
  out.half_zeros = false;
  for (uint8_t& code : out.codes) code = uint8_t(2 * code);
  for (uint8_t& zero : out.zero_points) zero = uint8_t(twice_zero(zero, bits, true));
  for (uint16_t& scale : out.scales) scale = f32_to_f16(0.5f * f16_to_f32(scale));
  return out;
}

void AffineMatrix::check(const std::string& name) const {
  const auto fail = [&](const std::string& what) { throw Error(name + ": " + what); };
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    fail(str("bits is ", bits, ", expected 2, 3, 4 or 8"));
  if (half_zeros && bits == 8) fail("8 bits with half zero points, expected whole ones");
  if (out_features <= 0 || in_features <= 0) fail(str("shape is [", out_features, ", ", in_features, "]"));
  if (group_size <= 0 || in_features % group_size != 0)
    fail(str("group size ", group_size, " does not divide in_features ", in_features));
  if (int64_t(codes.size()) != out_features * in_features)
    fail(str(codes.size(), " codes for ", out_features * in_features));
  if (int64_t(scales.size()) != out_features * groups())
    fail(str(scales.size(), " scales for ", out_features * groups()));
  if (zero_points.size() != scales.size())
    fail(str(zero_points.size(), " zero points for ", scales.size(), " scales"));
  const auto check_codes = [&](const std::vector<uint8_t>& values, const char* what) {
    if ((any_bits(values) & ~max_code()) == 0) return;
    const int largest = *std::max_element(values.begin(), values.end());
    fail(str(what, " ", largest, " exceeds ", max_code()));
  };
  check_codes(codes, "code");
  check_codes(zero_points, "zero point");
  for (size_t i = 0; i < scales.size(); ++i) {
    const float value = f16_to_f32(scales[i]);
    if (!std::isfinite(value) || value <= 0)
      fail(str("scale ", value, " of row ", int64_t(i) / groups(), ", group ", int64_t(i) % groups(),
               " is not a positive finite number"));
  }
}

}  // namespace ballast
