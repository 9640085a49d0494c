// How a quantized matrix lies in device memory: as the A operands of mma.m16n8k16 (device.h, multiply_add), so that a lane's
// codes of 16 rows by 64 columns are its own few words, and consecutive columns of a tile of rows are consecutive memory.
//
//   tile    16 rows; the last one is padded with rows of code 0
//   unit    64 columns of a tile, four mma steps; the last one is padded with columns of code 0, which meet zeros
//   stage   256 columns, four units: what the pipeline moves at once
//   pair    two codes of a lane side by side in k, one for each half of a 32-bit word; a unit has 16 for each lane,
//           pair = 4 · step + part, part being the index into a[4]
//
// The two codes of a pair lie in one word 16 bits apart, so that one lop3 cuts out both:
//
//   2 bits   eight pairs to a word, at bits 0, 2 … 14
//   3 bits   16 pairs in three words: five to a word at bits 0, 3, 6, 9, 12; bits 15 (and 31) of the three words are bits
//            0, 1, 2 of the sixteenth
//   4 bits   four pairs to a word, at bits 0, 4, 8, 12
//   8 bits   two pairs to a word, at bits 0 and 8
//
// Source of the 3-bit form: exllamav2's; of or-ing codes into a float's mantissa: Kim et al., arXiv 2211.10017.
#pragma once

#include "kernels/cuda/device.h"

namespace ballast::cuda {

inline constexpr int kTileRows = 16, kUnitColumns = 64, kStageColumns = 256;
inline constexpr int kStageUnits = kStageColumns / kUnitColumns;
inline constexpr int kPairs = 16;

struct Place {
  int word, shift;  ///< of the code with the lower column; the other is 16 bits higher
};
/// Not for pair 15 of 3 bits.
BALLAST_BOTH constexpr Place place_of(int bits, int pair) {
  switch (bits) {
    case 2:
      return {pair / 8, 2 * (pair % 8)};
    case 3:
      return {pair / 5, 3 * (pair % 5)};
    case 4:
      return {pair / 4, 4 * (pair % 4)};
    default:
      return {pair / 2, 8 * (pair % 2)};
  }
}
/// Words of a lane in a unit.
BALLAST_BOTH constexpr int words_of(int bits) {
  return bits;
}
/// Index of a lane's word among the 32 · bits of a unit: a lane reads 16, 8 or three times 4 bytes at once.
BALLAST_BOTH constexpr int word_index(int bits, int word, int lane) {
  switch (bits) {
    case 2:
      return 2 * lane + word;
    case 3:
      return 32 * word + lane;
    default:
      return word / 4 * 128 + 4 * lane + word % 4;
  }
}

/// Lane, pair and half of the code at `row` of a tile and `column` of a unit.
struct Corner {
  int lane, pair, half;
};
BALLAST_BOTH constexpr Corner corner_of(int row, int column) {
  const int step = column / 16, within = column % 16;
  return {row % 8 * 4 + within % 8 / 2, 4 * step + 2 * (within / 8) + row / 8, within % 2};
}

/// One code out of a unit's words.
BALLAST_BOTH int code_in_unit(const uint32_t* words, int bits, int row, int column) {
  const Corner at = corner_of(row, column);
  if (bits == 3 && at.pair == 15) {
    uint32_t code = 0;
    for (int i = 0; i < 3; ++i) code |= (words[word_index(3, i, at.lane)] >> (15 + 16 * at.half) & 1) << i;
    return int(code);
  }
  const Place place = place_of(bits, at.pair);
  return int(words[word_index(bits, place.word, at.lane)] >> (place.shift + 16 * at.half) &
             ((1u << bits) - 1));
}

/// Codes that decode_pair leaves with an offset still in them (at 2 bits, where subtracting it would cost more than reading
/// the codes): a power of two for every pair, small enough that sums lose less than f16 rounding does.
template <int Bits, class Half>
BALLAST_BOTH constexpr float offset_of(int pair) {
  if constexpr (Bits != 2) return 0;
  const int field = pair % 8;
  if constexpr (Half::kType == DType::f16) {
    // Bits 4, 6, 8 of the mantissa stand for 2^(10 − bit) beside them.
    constexpr float kOffsets[] = {64, 16, 64, 16, 4, 64, 16, 4};
    return kOffsets[field];
  } else {
    constexpr float kOffsets[] = {128, 32, 8, 128, 32, 8, 128, 32};
    return kOffsets[field];
  }
}

/// Pair `Pair` of a lane's words as two halves, code + offset_of(pair) each, exactly.
template <int Bits, class Half, int Pair>
BALLAST_DEVICE uint32_t decode_pair(const uint32_t (&words)[Bits]) {
  using dev::and_or;
  constexpr bool kF16 = Half::kType == DType::f16;
  constexpr uint32_t kOnes = 0x3f803f80u;  // bf16
  if constexpr (Bits == 2) {
    constexpr int kField = Pair % 8;
    const uint32_t word = words[Pair / 8];
    if constexpr (kF16) {
      constexpr uint32_t kMagic[] = {0x54005400u, 0x4c004c00u, 0x44004400u};  // for bits 4, 6, 8
      constexpr int kBit[] = {4, 6, 4, 6, 8, 4, 6, 8};
      const uint32_t moved = kField < 2 ? word << 4 : kField < 5 ? word : word >> 6;
      return and_or(moved, 0x00030003u << kBit[kField], kMagic[kBit[kField] / 2 - 2]);
    } else {
      constexpr uint32_t kMagic[] = {0x43004300u, 0x42004200u, 0x41004100u};  // for bits 0, 2, 4
      constexpr int kBit = 2 * (kField % 3);
      return and_or(word >> (6 * (kField / 3)), 0x00030003u << kBit, kMagic[kField % 3]);
    }
  } else if constexpr (Bits == 3 && Pair == 15) {
    uint32_t code = and_or(words[0] >> 15, 0x00010001u, kF16 ? 0x64006400u : 0x43004300u);
    code = and_or(words[1] >> 14, 0x00020002u, code);
    code = and_or(words[2] >> 13, 0x00040004u, code);
    if constexpr (kF16) return dev::sub_halves_f16(code, 0x64006400u);
    return dev::fma_halves<Half>(code, kOnes, 0xc300c300u);
  } else if constexpr (Bits == 3) {
    constexpr int kField = Pair % 5;
    const uint32_t word = words[Pair / 5];
    if constexpr (kF16) {
      constexpr int kBit = kField < 3 ? 3 * kField : 3 * (kField - 3);
      constexpr uint32_t kMagic = kBit == 0 ? 0x64006400u : kBit == 3 ? 0x58005800u : 0x4c004c00u;
      return dev::sub_halves_f16(and_or(kField < 3 ? word : word >> 9, 0x00070007u << kBit, kMagic), kMagic);
    } else {
      constexpr int kBit = 3 * (kField % 2);
      constexpr uint32_t kMagic = kBit == 0 ? 0x43004300u : 0x41804180u;
      return dev::fma_halves<Half>(and_or(word >> (6 * (kField / 2)), 0x00070007u << kBit, kMagic), kOnes,
                                   kMagic | 0x80008000u);
    }
  } else if constexpr (Bits == 4) {
    const uint32_t word = words[Pair / 4] >> (Pair % 4 / 2 * 8);
    if constexpr (kF16) {
      if constexpr (Pair % 2 == 0)
        return dev::sub_halves_f16(and_or(word, 0x000f000fu, 0x64006400u), 0x64006400u);
      // 1024 + 16 · code: times 1/16, less 64.
      return dev::fma_halves<Half>(and_or(word, 0x00f000f0u, 0x64006400u), 0x2c002c00u, 0xd400d400u);
    } else {
      return dev::fma_halves<Half>(and_or(Pair % 2 == 0 ? word : word >> 4, 0x000f000fu, 0x43004300u), kOnes,
                                   0xc300c300u);
    }
  } else {
    // Bytes are too wide for the mantissa of bf16, not for that of f16.
    const uint32_t code = dev::permute_bytes(words[Pair / 2], 0x64646464u, Pair % 2 == 0 ? 0x4240 : 0x4341);
    const uint32_t exact = dev::sub_halves_f16(code, 0x64006400u);
    if constexpr (kF16) return exact;
    const dev::Floats2 values = dev::unpack_halves<dev::F16>(exact);
    return dev::pack_halves<Half>(values.x, values.y);
  }
}

/// The A operand of mma step `Step`.
template <int Bits, class Half, int Step>
BALLAST_DEVICE void decode_step(const uint32_t (&words)[Bits], uint32_t (&a)[4]) {
  a[0] = decode_pair<Bits, Half, 4 * Step>(words);
  a[1] = decode_pair<Bits, Half, 4 * Step + 1>(words);
  a[2] = decode_pair<Bits, Half, 4 * Step + 2>(words);
  a[3] = decode_pair<Bits, Half, 4 * Step + 3>(words);
}

/// A lane's words of a unit that lies in shared memory.
template <int Bits>
BALLAST_DEVICE void load_words(dev::Shared<uint32_t> s_unit, uint32_t (&words)[Bits]) {
  const int lane = dev::lane();
  if constexpr (Bits == 2) {
    const dev::Words2 both = s_unit.as<dev::Words2>().get(lane);
    words[0] = both.x, words[1] = both.y;
  } else if constexpr (Bits == 3) {
    for (int i = 0; i < 3; ++i) words[i] = s_unit.get(32 * i + lane);
  } else {
    for (int part = 0; part < Bits / 4; ++part) {
      const dev::Words4 four = s_unit.as<dev::Words4>().get(32 * part + lane);
      words[4 * part] = four.x, words[4 * part + 1] = four.y, words[4 * part + 2] = four.z,
                words[4 * part + 3] = four.w;
    }
  }
}

/// How often sums of codes are brought to scale: the most columns, up to 128, that always lie in one group; 0 when that is
/// not a multiple of the 16 columns of an mma.
BALLAST_BOTH constexpr int chunk_columns(int64_t group_size) {
  for (int columns = 128; columns >= 16; columns /= 2)
    if (group_size % columns == 0) return columns;
  return 0;
}

BALLAST_BOTH constexpr int64_t tiles_of(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}
BALLAST_BOTH constexpr int64_t units_of(int64_t columns) {
  return (columns + kUnitColumns - 1) / kUnitColumns;
}
BALLAST_BOTH constexpr int64_t stages_of(int64_t columns) {
  return (columns + kStageColumns - 1) / kStageColumns;
}

}  // namespace ballast::cuda
