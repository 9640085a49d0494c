#include "kernels/encodings/affine.h"

#include <cmath>

namespace ballast {

void AffineMatrix::decode_row(int64_t row, float* out) const {
  const uint8_t* code = codes.data() + row * in_features;
  for (int64_t group = 0; group < groups(); ++group) {
    const float step = scale(row, group);
    const int zero = zero_points[size_t(row * groups() + group)];
    for (int64_t column = group * group_size; column < (group + 1) * group_size; ++column)
      out[column] = step * float(int(code[column]) - zero);
  }
}

void AffineMatrix::check(const std::string& name) const {
  const auto fail = [&](const std::string& what) { throw Error(name + ": " + what); };
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    fail(str("bits is ", bits, ", expected 2, 3, 4 or 8"));
  if (out_features <= 0 || in_features <= 0) fail(str("shape is [", out_features, ", ", in_features, "]"));
  if (group_size <= 0 || in_features % group_size != 0)
    fail(str("group size ", group_size, " does not divide in_features ", in_features));
  if (int64_t(codes.size()) != out_features * in_features)
    fail(str(codes.size(), " codes for ", out_features * in_features));
  if (int64_t(scales.size()) != out_features * groups())
    fail(str(scales.size(), " scales for ", out_features * groups()));
  if (zero_points.size() != scales.size())
    fail(str(zero_points.size(), " zero points for ", scales.size(), " scales"));
  for (uint8_t code : codes)
    if (code > max_code()) fail(str("code ", int(code), " exceeds ", max_code()));
  for (uint8_t zero : zero_points)
    if (zero > max_code()) fail(str("zero point ", int(zero), " exceeds ", max_code()));
  for (size_t i = 0; i < scales.size(); ++i) {
    const float value = f16_to_f32(scales[i]);
    if (!std::isfinite(value) || value <= 0)
      fail(str("scale ", value, " of row ", int64_t(i) / groups(), ", group ", int64_t(i) % groups(),
               " is not a positive finite number"));
  }
}

}  // namespace ballast
