#include "kernels/encodings/residual_binary.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/dtype.h"

namespace ballast {

float ResidualBinaryMatrix::value_of(int64_t row, int64_t block, bool is_salient, int code) const {
  const uint16_t* c = coefficients.data() + (row * blocks() + block) * kCoefficients;
  const auto signed_scale = [&](int which, bool plus) {
    const float scale = f16_to_f32(c[which]);
    return plus ? scale : -scale;
  };
  if (is_salient) {
    const float first = f16_to_f32(c[kMean]) + signed_scale(kScale1, code & 1);
    return first + signed_scale(kScale2, code & 2);
  }
  return code & 2 ? f16_to_f32(c[kMean1]) + signed_scale(kScale1Group, code & 1)
                  : f16_to_f32(c[kMean0]) + signed_scale(kScale0, code & 1);
}

void ResidualBinaryMatrix::decode_row(int64_t row, float* out) const {
  const uint8_t* code = codes.data() + row * in_features;
  for (int64_t block = 0; block < blocks(); ++block) {
    float values[2][4];
    for (int kind = 0; kind < 2; ++kind)
      for (int c = 0; c < 4; ++c) values[kind][c] = value_of(row, block, kind != 0, c);
    const int64_t end = std::min(in_features, (block + 1) * block_size);
    for (int64_t column = block * block_size; column < end; ++column)
      out[column] = values[salient[size_t(column)]][code[column]];
  }
}

void ResidualBinaryMatrix::check(const std::string& name) const {
  const auto fail = [&](const std::string& what) { throw Error(name + ": " + what); };
  if (out_features <= 0 || in_features <= 0) fail(str("shape is [", out_features, ", ", in_features, "]"));
  if (block_size <= 0) fail(str("block_size is ", block_size, ", expected 1 or more"));
  if (int64_t(codes.size()) != out_features * in_features || int64_t(salient.size()) != in_features ||
      int64_t(coefficients.size()) != out_features * blocks() * kCoefficients)
    fail("its parts do not have the sizes that its shape asks for");
  for (uint8_t code : codes)
    if (code > 3) fail(str("code ", int(code), " exceeds 3"));
  for (uint8_t flag : salient)
    if (flag > 1) fail(str("salient flag ", int(flag), " is neither 0 nor 1"));
  for (uint16_t value : coefficients)
    if (!std::isfinite(f16_to_f32(value))) fail("a coefficient is not finite");
}

}  // namespace ballast
