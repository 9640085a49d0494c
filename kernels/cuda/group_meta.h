// Scales and zero points beside fragments.
#pragma once

#include "kernels/cuda/fragments.h"

namespace ballast::cuda {

/// A scale and a zero for each of a tile's 16 rows and one group, as device memory holds them.
struct AffineMeta {
  uint16_t scales[kTileRows];  ///< binary16
  uint8_t zeros[kTileRows];    ///< twice the zeros, which may be multiples of 1/2; of 8-bit codes the zeros

  static BALLAST_BOTH constexpr float zero_unit(int bits) { return bits == 8 ? 1.0f : 0.5f; }

  static constexpr int kBytes = 48, kUsualChunk = 128;
  static constexpr bool kOutliers = false, kTables = false;
  struct Row {
    float scale, zero;
  };
  template <int Bits>
  static BALLAST_DEVICE Row row(dev::Shared<uint8_t> s_meta, int row) {
    return {dev::half_to_float(s_meta.as<uint16_t>().get(row)),
            zero_unit(Bits) * float(s_meta.get(32 + row))};
  }
};
static_assert(sizeof(AffineMeta) == AffineMeta::kBytes);

/// The same as floats, for groups whose scales and zero points are quantized themselves (encodings/sparse_outliers.h): the
/// zero points are real numbers. Such weights have outliers.
struct RealMeta {
  float scales[kTileRows];
  float zero_points[kTileRows];

  static constexpr int kBytes = 128, kUsualChunk = 16;
  static constexpr bool kOutliers = true, kTables = false;
  using Row = AffineMeta::Row;
  template <int Bits>
  static BALLAST_DEVICE Row row(dev::Shared<uint8_t> s_meta, int row) {
    const auto s_floats = s_meta.as<float>();
    return {s_floats.get(row), s_floats.get(16 + row)};
  }
};
static_assert(sizeof(RealMeta) == RealMeta::kBytes);

/// What the codes of a block of columns stand for (encodings/residual_binary.h), rounded to the 16 bits of the kernel: of each
/// row first the four values of its ordinary columns, then of its salient ones.
struct TableMeta {
  uint16_t values[kTileRows][8];

  static constexpr int kBytes = 256, kUsualChunk = 128;
  static constexpr bool kOutliers = false, kTables = true;
};
static_assert(sizeof(TableMeta) == TableMeta::kBytes);

/// The pair of 16-bit values that the two 2-bit codes of a pair choose from a table of four.
BALLAST_DEVICE uint32_t look_up_pair(uint32_t word, int shift, uint32_t low, uint32_t high) {
  // Twice the codes, at bits 1 and 9: where the bytes begin.
  const uint32_t codes = (shift == 0 ? word << 1 : word >> (shift - 1)) & 0x00060006u;
  const uint32_t places = codes | codes >> 8;
  return dev::permute_bytes(low, high, (places & 0x0606u) * 0x11u | 0x1010u);
}

/// A weight kept in 16 bits, as one word: its column in the stage, whether its row of the tile is below 8, its value in
/// binary16. Under it lies code 0.
BALLAST_BOTH constexpr uint32_t outlier_word(int column, int row, uint16_t value) {
  return uint32_t(value) << 16 | uint32_t(row / 8) << 8 | uint32_t(column);
}
BALLAST_BOTH constexpr int outlier_column(uint32_t word) {
  return int(word & 0xff);
}
BALLAST_BOTH constexpr bool outlier_is_low(uint32_t word) {
  return (word >> 8 & 1) == 0;
}
/// Index of the list of outliers of `row` of a tile, and of row ± 8, in one stage; a list begins where the one before ends.
BALLAST_BOTH constexpr int64_t outlier_list(int64_t tile, int64_t stages, int64_t stage, int row) {
  return (tile * stages + stage) * 8 + row % 8;
}

}  // namespace ballast::cuda
