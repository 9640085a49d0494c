#include "kernels/encodings/sparse_outliers.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace ballast {

float SparseOutlierMatrix::scale(int64_t row, int64_t group) const {
  const uint16_t* s = stats.data() + (row / kStatRows * groups() + group) * 4;
  const float product = f16_to_f32(s[1]) * float(scale_codes[size_t(row * groups() + group)]);
  return f16_to_f32(s[0]) + product;
}

float SparseOutlierMatrix::zero(int64_t row, int64_t group) const {
  const uint16_t* s = stats.data() + (row / kStatRows * groups() + group) * 4;
  const float product = f16_to_f32(s[3]) * float(zero_codes[size_t(row * groups() + group)]);
  return f16_to_f32(s[2]) + product;
}

void SparseOutlierMatrix::decode_row(int64_t row, float* out) const {
  const uint8_t* code = codes.data() + row * in_features;
  for (int64_t group = 0; group < groups(); ++group) {
    const float step = scale(row, group), offset = zero(row, group);
    for (int64_t column = group * group_size; column < (group + 1) * group_size; ++column)
      out[column] = step * (float(code[column]) - offset);
  }
  for (uint32_t i = outlier_rows[size_t(row)]; i < outlier_rows[size_t(row) + 1]; ++i)
    out[outlier_columns[i]] = f16_to_f32(outlier_values[i]);
}

void SparseOutlierMatrix::check(const std::string& name) const {
  const auto fail = [&](const std::string& what) { throw Error(name + ": " + what); };
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
    fail(str("bits is ", bits, ", expected 2, 3, 4 or 8"));
  if (stat_bits < 1 || stat_bits > 8) fail(str("stat_bits is ", stat_bits, ", expected 1 to 8"));
  if (out_features <= 0 || in_features <= 0 || in_features > 65536)
    fail(str("shape is [", out_features, ", ", in_features, "], at most 65536 columns"));
  if (group_size <= 0 || in_features % group_size != 0)
    fail(str("group size ", group_size, " does not divide in_features ", in_features));
  const size_t groups_in_all = size_t(out_features * groups());
  if (int64_t(codes.size()) != out_features * in_features || scale_codes.size() != groups_in_all ||
      zero_codes.size() != groups_in_all || int64_t(stats.size()) != tiles() * groups() * 4 ||
      int64_t(outlier_rows.size()) != out_features + 1 || outlier_values.size() != outlier_columns.size())
    fail("its parts do not have the sizes that its shape asks for");
  for (uint8_t code : codes)
    if (code >> bits) fail(str("code ", int(code), " exceeds ", (1 << bits) - 1));
  for (const auto* level : {&scale_codes, &zero_codes})
    for (uint8_t code : *level)
      if (code >> stat_bits) fail(str("statistics code ", int(code), " exceeds ", (1 << stat_bits) - 1));
  for (const auto* values : {&stats, &outlier_values})
    for (uint16_t value : *values)
      if (!std::isfinite(f16_to_f32(value))) fail("a scale, zero point or outlier is not finite");
  if (outlier_rows.front() != 0 || outlier_rows.back() != outlier_columns.size())
    fail("row offsets do not span the outliers");
  for (int64_t row = 0; row < out_features; ++row) {
    if (outlier_rows[size_t(row)] > outlier_rows[size_t(row) + 1] ||
        outlier_rows[size_t(row) + 1] > outlier_columns.size())
      fail(str("row offsets descend at row ", row));
    for (uint32_t i = outlier_rows[size_t(row)]; i < outlier_rows[size_t(row) + 1]; ++i)
      if (outlier_columns[i] >= in_features ||
          (i > outlier_rows[size_t(row)] && outlier_columns[i] <= outlier_columns[i - 1]))
        fail(str("outlier columns of row ", row, " do not ascend within ", in_features));
  }
}

}  // namespace ballast
