#include <cstring>
#include <optional>

#include "engine/io/packed_bits.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

/// Bits and form of the codes.
struct Packing {
  int bits = 0;
  bool padded = false;  // the older form of 3 bits

  int64_t words(int64_t count) const { return padded ? padded_words(count) : packed_words(count, bits); }
  void unpack(const char* from, int64_t count, uint8_t* codes, int64_t stride = 1) const {
    padded ? unpack_padded_codes(from, count, codes, stride) : unpack_codes(from, count, bits, codes, stride);
  }
};

/// The packing for which `words` words hold a row; small rows may fit several widths.
Packing find_packing(const PackedSource& source, int64_t words) {
  const bool older = source.config.older_3_bit;
  std::optional<Packing> found;
  for (const Packing packing : {Packing{2}, {3, older}, {3, !older}, {4}, {8}}) {
    if (packing.words(source.in_features) != words) continue;
    if (packing.bits == source.config.bits) return packing;
    if (found && found->bits != packing.bits && source.config.mixed)
      source.fail("weight_packed",
                  str(words, " words a row fit ", found->bits, " and ", packing.bits, " bits alike"));
    if (!found) found = packing;
  }
  if (!found)
    source.fail("weight_packed", str("no width of 2, 3, 4 or 8 bits packs ", source.in_features,
                                     " inputs into ", words, " words"));
  source.check_bits("weight_packed", found->bits);
  return *found;
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
std::vector<uint8_t> read_zero_points(const PackedSource& source, const Packing& packing, int64_t groups) {
  const int64_t out_features = source.out_features;
  std::vector<uint8_t> zeros(static_cast<size_t>(out_features * groups), uint8_t(1 << (packing.bits - 1)));
  const StoredTensor* tensor = source.checkpoint.find(source.name("weight_zero_point"));
  if (!tensor) {
    if (!source.config.symmetric && !source.config.mixed)
      source.fail("weight_zero_point", "is missing, but quantization_config says the weights are asymmetric");
    return zeros;
  }
  source.expect(*tensor, "weight_zero_point", "I32", {packing.words(out_features), groups});
  std::vector<uint8_t> column(static_cast<size_t>(out_features));
  for (int64_t group = 0; group < groups; ++group) {
    packing.unpack(source.checkpoint.bytes(*tensor) + 4 * group, out_features, column.data(), groups);
    for (int64_t row = 0; row < out_features; ++row)
      zeros[size_t(row * groups + group)] = column[size_t(row)];
  }
  return zeros;
}

}  // namespace

AffineMatrix read_pack_quantized(const PackedSource& source) {
  const int64_t out_features = source.out_features, in_features = source.in_features;
  const StoredTensor& packed = source.matrix("weight_packed", 0, out_features);
  const Packing packing = find_packing(source, packed.shape[1]);
  source.expect(packed, "weight_packed", "I32", packed.shape);
  check_shape_tensor(source);

  const StoredTensor& scales = source.matrix("weight_scale", 0, out_features);
  AffineMatrix matrix{.bits = packing.bits, .out_features = out_features, .in_features = in_features};
  matrix.group_size = source.group_size("weight_scale", scales.shape[1]);
  const int64_t groups = matrix.groups();
  const std::vector<uint16_t> stored_scales = source.scales(scales, "weight_scale");
  const std::vector<uint8_t> stored_zeros = read_zero_points(source, packing, groups);
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
  for (int64_t row = 0; row < out_features; ++row)
    packing.unpack(words + row * packed.shape[1] * 4, in_features, matrix.codes.data() + row * in_features);
  return matrix;
}

void write_pack_quantized(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                          bool symmetric) {
  const int64_t out_features = matrix.out_features, in_features = matrix.in_features,
                groups = matrix.groups();
  const int bits = matrix.bits;
  const int64_t row_words = packed_words(in_features, bits), zero_rows = packed_words(out_features, bits);
  std::vector<uint32_t> words(static_cast<size_t>(out_features * row_words));
  for (int64_t row = 0; row < out_features; ++row)
    pack_codes(matrix.codes.data() + row * in_features, in_features, bits, words.data() + row * row_words);
  writer.add(prefix + ".weight_packed", "I32", {out_features, row_words}, words.data());
  writer.add(prefix + ".weight_scale", "F16", {out_features, groups}, matrix.scales.data());
  if (!symmetric) {
    std::vector<uint32_t> zeros(static_cast<size_t>(zero_rows * groups));
    std::vector<uint8_t> column(static_cast<size_t>(out_features));
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t row = 0; row < out_features; ++row)
        column[size_t(row)] = matrix.zero_points[size_t(row * groups + group)];
      pack_codes(column.data(), out_features, bits, zeros.data() + group, groups);
    }
    writer.add(prefix + ".weight_zero_point", "I32", {zero_rows, groups}, zeros.data());
  }
  const int64_t shape[2] = {out_features, in_features};
  writer.add(prefix + ".weight_shape", "I64", {2}, shape);
}

}  // namespace ballast
