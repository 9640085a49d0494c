#include "engine/io/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/io/json.h"
#include "engine/io/packed_bits.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  return nlohmann::json(shape).dump();
}

bool subnormal(float value, float smallest_normal) {
  return value != 0 && std::fabs(value) < smallest_normal;
}

}  // namespace

void PackedSource::fail(const char* suffix, const std::string& reason) const {
  throw Error(str(checkpoint.folder().string(), ": tensor ", shown(name(suffix), 200), ": ", reason));
}

const StoredTensor& PackedSource::matrix(const char* suffix, int axis, int64_t size) const {
  const StoredTensor& tensor = checkpoint.require(name(suffix));
  if (tensor.shape.size() != 2 || tensor.shape[size_t(axis)] != size)
    fail(suffix, str("expected shape ", axis == 0 ? str("[", size, ", _]") : str("[_, ", size, "]"), ", got ",
                     shape_text(tensor.shape)));
  return tensor;
}

void PackedSource::expect(const StoredTensor& tensor, const char* suffix, const char* dtype,
                          const std::vector<int64_t>& shape) const {
  if (tensor.dtype != dtype) fail(suffix, str("expected dtype ", dtype, ", got ", shown(tensor.dtype)));
  if (tensor.shape != shape)
    fail(suffix, str("expected shape ", shape_text(shape), ", got ", shape_text(tensor.shape)));
}

int64_t PackedSource::group_size(const char* suffix, int64_t groups) const {
  if (groups <= 0 || groups > in_features || in_features % groups != 0)
    fail(suffix, str("expected groups that divide ", in_features, " inputs evenly, got ", groups, " groups"));
  const int64_t size = in_features / groups;
  if (config.mixed) return size;
  const int64_t expected = config.group_size == -1 ? in_features : config.group_size;
  if (in_features % expected != 0)
    fail(suffix,
         str("group_size ", expected, " of quantization_config does not divide ", in_features, " inputs"));
  if (size != expected)
    fail(suffix, str("expected ", in_features / expected, " groups of ", expected,
                     " (quantization_config), got ", groups));
  return size;
}

void PackedSource::check_bits(const char* suffix, int bits) const {
  if (!config.mixed && bits != config.bits)
    fail(suffix, str("expected ", config.bits, " bits (quantization_config), got the shape of ", bits));
}

std::vector<uint16_t> PackedSource::scales(const StoredTensor& tensor, const char* suffix) const {
  const std::vector<float> values = checkpoint.floats(tensor);
  std::vector<uint16_t> out(values.size());
  const float smallest = tensor.dtype == "F16" ? 0x1p-14f : 0x1p-126f;
  for (size_t i = 0; i < values.size(); ++i) {
    out[i] = f32_to_f16(values[i]);
    if (!std::isfinite(values[i]) || values[i] <= 0 || subnormal(values[i], smallest))
      fail(suffix, str("expected positive normal numbers, got ", values[i], " at index ", i));
    if (out[i] == 0 || !std::isfinite(f16_to_f32(out[i])))
      fail(suffix, str("value ", values[i], " at index ", i, " has no binary16 counterpart"));
  }
  return out;
}

std::vector<int32_t> PackedSource::integers(const char* suffix, int64_t count) const {
  const StoredTensor& tensor = checkpoint.require(name(suffix));
  expect(tensor, suffix, "I32", {count});
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::memcpy(out.data(), checkpoint.bytes(tensor), tensor.bytes);
  return out;
}

std::vector<uint16_t> PackedSource::halves(const char* suffix, const std::vector<int64_t>& shape) const {
  const StoredTensor& tensor = checkpoint.require(name(suffix));
  expect(tensor, suffix, "F16", shape);
  std::vector<uint16_t> out(static_cast<size_t>(tensor.bytes / 2));
  if (!out.empty()) std::memcpy(out.data(), checkpoint.bytes(tensor), tensor.bytes);
  return out;
}

std::vector<uint8_t> PackedSource::code_stream(const char* suffix, int64_t count, int bits) const {
  const StoredTensor& tensor = checkpoint.require(name(suffix));
  expect(tensor, suffix, "I32", {packed_words(count, bits)});
  std::vector<uint8_t> out(static_cast<size_t>(count));
  unpack_codes(checkpoint.bytes(tensor), count, bits, out.data());
  return out;
}

std::vector<uint8_t> PackedSource::code_rows(const char* suffix, int bits) const {
  const StoredTensor& tensor = checkpoint.require(name(suffix));
  const int64_t words = packed_words(in_features, bits);
  expect(tensor, suffix, "I32", {out_features, words});
  std::vector<uint8_t> out(static_cast<size_t>(out_features * in_features));
  for (int64_t row = 0; row < out_features; ++row)
    unpack_codes(checkpoint.bytes(tensor) + row * words * 4, in_features, bits,
                 out.data() + row * in_features);
  return out;
}

void PackedSource::check_encoding(const char* suffix, const char* encoding) const {
  if (std::find(config.encodings.begin(), config.encodings.end(), encoding) == config.encodings.end())
    fail(suffix, str("belongs to encoding ", encoding, ", which quantization_config does not announce"));
}

std::vector<int64_t> PackedSource::group_order(const char* suffix, int64_t group_size) const {
  const int64_t groups = in_features / group_size;
  std::vector<int64_t> order(static_cast<size_t>(groups));
  for (int64_t i = 0; i < groups; ++i) order[size_t(i)] = i;
  const StoredTensor* tensor = checkpoint.find(name(suffix));
  if (!tensor) return order;
  expect(*tensor, suffix, "I32", {in_features});
  const char* const bytes = checkpoint.bytes(*tensor);
  std::vector<bool> used(static_cast<size_t>(groups));
  bool together = true;
  for (int64_t i = 0; i < in_features; ++i) {
    int32_t group = 0;
    std::memcpy(&group, bytes + 4 * i, 4);
    if (group < 0 || group >= groups)
      fail(suffix, str("expected groups in [0, ", groups - 1, "], got ", group, " at index ", i));
    if (i % group_size == 0) {
      together = together && !used[size_t(group)];
      used[size_t(group)] = true;
      order[size_t(i / group_size)] = group;
    }
    together = together && order[size_t(i / group_size)] == group;
  }
  if (!together)
    fail(suffix, str("expected each group's ", group_size,
                     " columns together, got a permuted order; act-order (desc_act) without static groups is "
                     "not supported"));
  return order;
}

bool layout_holds(PackedLayout layout, int bits, int64_t out_features, int64_t in_features) {
  if (layout == PackedLayout::pack_quantized) return true;
  return in_features * bits % 32 == 0 && out_features * bits % 32 == 0;
}

bool has_packed_weight(const Checkpoint& checkpoint, const std::string& prefix) {
  return checkpoint.find(prefix + ".qweight") || checkpoint.find(prefix + ".weight_packed");
}

AffineMatrix read_packed(const Checkpoint& checkpoint, const PackedConfig& config, const std::string& prefix,
                         int64_t out_features, int64_t in_features) {
  CHECK(out_features > 0 && in_features > 0, prefix);
  const PackedSource source{checkpoint, config, prefix, out_features, in_features};
  const bool gptq = checkpoint.find(prefix + ".qweight"), packed = checkpoint.find(prefix + ".weight_packed");
  if (gptq && packed) source.fail("qweight", "is there beside weight_packed, expected one of them");
  if (gptq && config.layout == PackedLayout::pack_quantized && !config.mixed)
    source.fail("qweight", "is a GPTQ tensor, but quantization_config says compressed-tensors");
  if (!gptq && !packed) source.fail("qweight", "is missing, and so is weight_packed");
  AffineMatrix matrix = gptq ? read_gptq(source) : read_pack_quantized(source);
  matrix.check(prefix);
  return matrix;
}

AffineMatrix read_packed(const Checkpoint& checkpoint, const std::string& prefix, int64_t out_features,
                         int64_t in_features) {
  const auto config = packed_config(checkpoint);
  if (!config)
    throw Error(str((checkpoint.folder() / "config.json").string(),
                    ": expected quantization_config for the packed tensors of ", shown(prefix, 200),
                    ", got none"));
  return read_packed(checkpoint, *config, prefix, out_features, in_features);
}

void write_packed(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                  PackedLayout layout, bool symmetric) {
  matrix.check(prefix);
  CHECK(!matrix.half_zeros, prefix, ": published layouts know whole zero points only");
  if (!layout_holds(layout, matrix.bits, matrix.out_features, matrix.in_features))
    throw Error(str(prefix, ": the GPTQ layout cannot hold ", matrix.out_features, " x ", matrix.in_features,
                    " weights of ", matrix.bits, " bits: both sizes times bits must divide by 32"));
  for (uint16_t scale : matrix.scales)
    if (subnormal(f16_to_f32(scale), 0x1p-14f))
      throw Error(str(prefix, ": scale ", f16_to_f32(scale), " is subnormal in binary16, expected at least ",
                      0x1p-14f));
  for (uint8_t zero : matrix.zero_points)
    CHECK(!symmetric || zero == 1 << (matrix.bits - 1), prefix, ": zero point ", int(zero),
          " is not symmetric");
  if (layout == PackedLayout::pack_quantized) return write_pack_quantized(writer, prefix, matrix, symmetric);
  write_gptq(writer, prefix, matrix, layout == PackedLayout::gptq_v1);
}

}  // namespace ballast
