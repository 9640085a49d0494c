#include <algorithm>
#include <array>
#include <cstring>

#include "engine/io/packed_bits.h"
#include "engine/io/packed_layouts.h"

namespace ballast {
namespace {

// Of a matrix that is packed or unpacked at a time; a multiple of 32 columns.
constexpr int64_t kBlockRows = 64, kBlockColumns = 256;

struct GptqData {
  const uint32_t *qweight, *qzeros;
  const uint16_t* scales;
};

void add_gptq(CheckpointWriter& writer, const std::string& prefix, const AffineView& facts,
              const GptqData& data) {
  const int64_t out_features = facts.out_features, in_features = facts.in_features,
                groups = in_features / facts.group_size;
  writer.add(prefix + ".qweight", "I32", {in_features * facts.bits / 32, out_features}, data.qweight);
  writer.add(prefix + ".qzeros", "I32", {groups, out_features * facts.bits / 32}, data.qzeros);
  writer.add(prefix + ".scales", "F16", {groups, out_features}, data.scales);
  std::vector<int32_t> group_of(static_cast<size_t>(in_features));
  for (int64_t i = 0; i < in_features; ++i) group_of[size_t(i)] = int32_t(i / facts.group_size);
  writer.add(prefix + ".g_idx", "I32", {in_features}, group_of.data());
}

}  // namespace

PackedLayout gptq_version(const Checkpoint& checkpoint, const StoredTensor& tensor, int bits, bool symmetric,
                          PackedLayout label) {
  if (!symmetric || tensor.bytes == 0) return label;
  // 32 codes fill `bits` words exactly, so the expected words repeat with that period, in each row anew.
  const auto all = [&](int zero_point) {
    std::array<uint8_t, 32> codes;
    codes.fill(uint8_t(zero_point));
    std::array<uint32_t, 8> pattern{};
    pack_codes(codes.data(), 32, bits, pattern.data());
    const char* const bytes = checkpoint.bytes(tensor);
    const int64_t width = tensor.shape.back();
    for (int64_t i = 0; i < int64_t(tensor.bytes / 4); ++i)
      if (std::memcmp(bytes + 4 * i, &pattern[size_t(i % width % bits)], 4) != 0) return false;
    return true;
  };
  const int middle = 1 << (bits - 1);
  if (all(middle)) return PackedLayout::gptq_v2;
  if (all(middle - 1)) return PackedLayout::gptq_v1;
  return label;
}

AffineMatrix read_gptq(const PackedSource& source) {
  const int64_t out_features = source.out_features, in_features = source.in_features;
  const StoredTensor& qweight = source.matrix("qweight", 1, out_features);
  int bits = 0;
  for (int candidate : {2, 3, 4, 8})
    if (in_features * candidate % 32 == 0 && qweight.shape[0] == in_features * candidate / 32)
      bits = candidate;
  if (bits == 0)
    source.fail("qweight", str("expected ", in_features, " * bits / 32 rows for 2, 3, 4 or 8 bits, got ",
                               qweight.shape[0]));
  source.check_bits("qweight", bits);
  source.expect(qweight, "qweight", "I32", qweight.shape);
  if (out_features * bits % 32 != 0)
    source.fail("qzeros", str(out_features, " outputs of ", bits, " bits do not fill whole 32-bit words"));

  const StoredTensor& scales = source.matrix("scales", 1, out_features);
  AffineMatrix matrix{.bits = bits, .out_features = out_features, .in_features = in_features};
  matrix.group_size = source.group_size("scales", scales.shape[0]);
  const int64_t groups = matrix.groups();
  const StoredTensor& qzeros = source.checkpoint.require(source.name("qzeros"));
  const int64_t zero_words = out_features * bits / 32;
  source.expect(qzeros, "qzeros", "I32", {groups, zero_words});
  const PackedLayout label =
      source.config.layout == PackedLayout::gptq_v1 ? PackedLayout::gptq_v1 : PackedLayout::gptq_v2;
  const bool minus_one =
      gptq_version(source.checkpoint, qzeros, bits, source.config.symmetric, label) == PackedLayout::gptq_v1;

  const std::vector<uint16_t> stored_scales = source.scales(scales, "scales");
  const std::vector<int64_t> order = source.group_order("g_idx", matrix.group_size);
  matrix.scales.resize(size_t(out_features * groups));
  matrix.zero_points.resize(size_t(out_features * groups));
  std::vector<uint8_t> zeros(static_cast<size_t>(out_features));
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t stored = order[size_t(group)];
    unpack_codes(source.checkpoint.bytes(qzeros) + stored * zero_words * 4, out_features, bits, zeros.data());
    for (int64_t row = 0; row < out_features; ++row) {
      const size_t to = size_t(row * groups + group);
      matrix.scales[to] = stored_scales[size_t(stored * out_features + row)];
      matrix.zero_points[to] = uint8_t((zeros[size_t(row)] + (minus_one ? 1 : 0)) & matrix.max_code());
    }
  }

  // Partition: blocks whose words, 4 cache lines in a row, and codes stay in the first-level cache.
  matrix.codes.resize(size_t(out_features * in_features));
  const char* const words = source.checkpoint.bytes(qweight);
  for (int64_t block = 0; block < out_features; block += kBlockRows)
    for (int64_t first = 0; first < in_features; first += kBlockColumns)
      for (int64_t row = block; row < std::min(block + kBlockRows, out_features); ++row)
        unpack_codes(words + (first * bits / 32 * out_features + row) * 4,
                     std::min<int64_t>(kBlockColumns, in_features - first), bits,
                     matrix.codes.data() + row * in_features + first, out_features);
  return matrix;
}

void write_gptq(CheckpointWriter& writer, const std::string& prefix, const AffineMatrix& matrix,
                bool minus_one) {
  const int64_t out_features = matrix.out_features, in_features = matrix.in_features,
                groups = matrix.groups();
  const int bits = matrix.bits;
  const int64_t rows = in_features * bits / 32, zero_words = out_features * bits / 32;
  std::vector<uint32_t> words(static_cast<size_t>(rows * out_features));
  for (int64_t block = 0; block < out_features; block += kBlockRows)
    for (int64_t first = 0; first < in_features; first += kBlockColumns)
      for (int64_t row = block; row < std::min(block + kBlockRows, out_features); ++row)
        pack_codes(matrix.codes.data() + row * in_features + first,
                   std::min<int64_t>(kBlockColumns, in_features - first), bits,
                   words.data() + first * bits / 32 * out_features + row, out_features);
  std::vector<uint32_t> zeros(static_cast<size_t>(groups * zero_words));
  std::vector<uint16_t> scales(static_cast<size_t>(groups * out_features));
  std::vector<uint8_t> column(static_cast<size_t>(out_features));
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t row = 0; row < out_features; ++row) {
      const size_t from = size_t(row * groups + group);
      // The mask keeps the -1 of a zero point 0 from running into the neighbouring codes.
      column[size_t(row)] = uint8_t((matrix.zero_points[from] - (minus_one ? 1 : 0)) & matrix.max_code());
      scales[size_t(group * out_features + row)] = matrix.scales[from];
    }
    pack_codes(column.data(), out_features, bits, zeros.data() + group * zero_words);
  }
  add_gptq(writer, prefix, matrix.facts(), {words.data(), zeros.data(), scales.data()});
}

void write_gptq_words(CheckpointWriter& writer, const std::string& prefix, const AffineView& facts,
                      const uint32_t* qweight, const uint16_t* scales, uint8_t zero_point) {
  if (!layout_holds(PackedLayout::gptq_v2, facts.bits, facts.out_features, facts.in_features))
    throw Error(str(prefix, ": the GPTQ layout cannot hold ", facts.out_features, " x ", facts.in_features,
                    " weights of ", facts.bits, " bits: both sizes times bits must divide by 32"));
  const int64_t groups = facts.in_features / facts.group_size,
                zero_words = facts.out_features * facts.bits / 32;
  const std::vector<uint8_t> row(static_cast<size_t>(facts.out_features), zero_point);
  std::vector<uint32_t> zeros(static_cast<size_t>(groups * zero_words));
  for (int64_t group = 0; group < groups; ++group)
    pack_codes(row.data(), facts.out_features, facts.bits, zeros.data() + group * zero_words);
  add_gptq(writer, prefix, facts, {qweight, zeros.data(), scales});
}

}  // namespace ballast
