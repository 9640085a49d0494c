#include <algorithm>
#include <cstring>

#include "engine/io/packed_bits.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

int64_t words_for(int64_t codes, int bits) {
  return (codes + codes_per_word(bits) - 1) / codes_per_word(bits);
}

uint32_t load_word(const char* bytes, int64_t index) {
  uint32_t word;
  std::memcpy(&word, bytes + index * 4, 4);
  return word;
}

/// Bits for which `words` words hold a row; small rows may fit several.
int find_bits(const PackedSource& source, int64_t words) {
  int found = 0;
  for (int bits : {2, 3, 4, 8}) {
    if (words_for(source.in_features, bits) != words) continue;
    if (bits == source.config.bits) return bits;
    if (found != 0 && source.config.mixed)
      source.fail("weight_packed", str(words, " words a row fit ", found, " and ", bits, " bits alike"));
    found = bits;
  }
  if (found == 0)
    source.fail("weight_packed", str("no width of 2, 3, 4 or 8 bits packs ", source.in_features,
                                     " inputs into ", words, " words"));
  source.check_bits("weight_packed", found);
  return found;
}

void check_shape_tensor(const PackedSource& source) {
  const StoredTensor* tensor = source.checkpoint.find(source.name("weight_shape"));
  if (!tensor) return;
  if ((tensor->dtype != "I64" && tensor->dtype != "I32") || tensor->shape != std::vector<int64_t>{2})
    source.fail("weight_shape", "expected two I64 numbers");
  int64_t got[2] = {0, 0};
  const char* const bytes = source.checkpoint.bytes(*tensor);
  for (int i = 0; i < 2; ++i) {
    int32_t narrow = 0;
    if (tensor->dtype == "I64") std::memcpy(&got[i], bytes + 8 * i, 8);
    if (tensor->dtype == "I32") got[i] = (std::memcpy(&narrow, bytes + 4 * i, 4), narrow);
  }
  if (got[0] != source.out_features || got[1] != source.in_features)
    source.fail("weight_shape", str("expected [", source.out_features, ", ", source.in_features, "], got [",
                                    got[0], ", ", got[1], "]"));
}

/// Zero points in stored group order, [out_features, groups].
std::vector<uint8_t> read_zero_points(const PackedSource& source, int bits, int64_t groups) {
  const int64_t out_features = source.out_features;
  std::vector<uint8_t> zeros(static_cast<size_t>(out_features * groups), uint8_t(1 << (bits - 1)));
  const StoredTensor* tensor = source.checkpoint.find(source.name("weight_zero_point"));
  if (!tensor) {
    if (!source.config.symmetric && !source.config.mixed)
      source.fail("weight_zero_point", "is missing, but quantization_config says the weights are asymmetric");
    return zeros;
  }
  source.expect(*tensor, "weight_zero_point", "I32", {words_for(out_features, bits), groups});
  const char* const words = source.checkpoint.bytes(*tensor);
  for (int64_t row = 0; row < out_features; ++row)
    for (int64_t group = 0; group < groups; ++group) {
      const uint32_t word = load_word(words, row / codes_per_word(bits) * groups + group);
      zeros[size_t(row * groups + group)] =
          uint8_t(word >> (bits * int(row % codes_per_word(bits))) & ((1u << bits) - 1));
    }
  return zeros;
}

}  // namespace

AffineMatrix read_pack_quantized(const PackedSource& source) {
  const int64_t out_features = source.out_features, in_features = source.in_features;
  const StoredTensor& packed = source.matrix("weight_packed", 0, out_features);
  const int bits = find_bits(source, packed.shape[1]);
  source.expect(packed, "weight_packed", "I32", packed.shape);
  check_shape_tensor(source);

  const StoredTensor& scales = source.matrix("weight_scale", 0, out_features);
  AffineMatrix matrix{.bits = bits, .out_features = out_features, .in_features = in_features};
  matrix.group_size = source.group_size("weight_scale", scales.shape[1]);
  const int64_t groups = matrix.groups();
  const std::vector<uint16_t> stored_scales = source.scales(scales, "weight_scale");
  const std::vector<uint8_t> stored_zeros = read_zero_points(source, bits, groups);
  const std::vector<int64_t> order = source.group_order("weight_g_idx", matrix.group_size);
  matrix.scales.resize(stored_scales.size());
  matrix.zero_points.resize(stored_zeros.size());
  for (int64_t row = 0; row < out_features; ++row)
    for (int64_t group = 0; group < groups; ++group) {
      const size_t from = size_t(row * groups + order[size_t(group)]), to = size_t(row * groups + group);
      matrix.scales[to] = stored_scales[from];
      matrix.zero_points[to] = stored_zeros[from];
    }

  matrix.codes.resize(size_t(out_features * in_features));
  const char* const words = source.checkpoint.bytes(packed);
  const int per_word = codes_per_word(bits);
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t row = 0; row < out_features; ++row) {
    uint8_t* code = matrix.codes.data() + row * in_features;
    for (int64_t first = 0, at = row * packed.shape[1]; first < in_features; first += per_word, ++at) {
      uint32_t word = load_word(words, at);
      const int64_t here = std::min<int64_t>(per_word, in_features - first);
      for (int64_t i = 0; i < here; ++i, word >>= bits) code[first + i] = uint8_t(word & mask);
    }
  }
  return matrix;
}

void write_pack_quantized(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                          bool symmetric) {
  const int64_t out_features = matrix.out_features, in_features = matrix.in_features,
                groups = matrix.groups();
  const int bits = matrix.bits, per_word = codes_per_word(bits);
  const int64_t row_words = words_for(in_features, bits), zero_rows = words_for(out_features, bits);
  std::vector<uint32_t> words(static_cast<size_t>(out_features * row_words));
  for (int64_t row = 0; row < out_features; ++row)
    for (int64_t i = 0; i < in_features; ++i)
      words[size_t(row * row_words + i / per_word)] |= uint32_t(matrix.codes[size_t(row * in_features + i)])
                                                       << (bits * int(i % per_word));
  writer.add(prefix + ".weight_packed", "I32", {out_features, row_words}, words.data());
  writer.add(prefix + ".weight_scale", "F16", {out_features, groups}, matrix.scales.data());
  if (!symmetric) {
    std::vector<uint32_t> zeros(static_cast<size_t>(zero_rows * groups));
    for (int64_t row = 0; row < out_features; ++row)
      for (int64_t group = 0; group < groups; ++group)
        zeros[size_t(row / per_word * groups + group)] |=
            uint32_t(matrix.zero_points[size_t(row * groups + group)]) << (bits * int(row % per_word));
    writer.add(prefix + ".weight_zero_point", "I32", {zero_rows, groups}, zeros.data());
  }
  const int64_t shape[2] = {out_features, in_features};
  writer.add(prefix + ".weight_shape", "I64", {2}, shape);
}

}  // namespace ballast
