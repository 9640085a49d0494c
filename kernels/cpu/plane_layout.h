// Packed codes for integer kernels: where a code of 2, 3, 4 or 8 bits lies. Shared by packing and by the kernels
// of every instruction set, so all functions here are static.
//
// A group of columns is cut into chunks of kChunk columns, the last one shorter, and a chunk into steps. One step
// is what one 64-byte vector multiplies with one 32-bit word of activations in every lane of 16 rows:
//
//   2, 3, 4 bits   4 columns: byte 4·row + j is the code of row `row` in column 4·step + j
//   8 bits         2 columns: 16-bit element 2·row + j is that of column 2·step + j
//
// Steps are packed side by side, unit after unit:
//
//   2 bits   64 bytes = 4 steps: step i at bits 2i of its bytes
//   3 bits   192 bytes = 8 steps: vectors A, B, C hold steps 0 and 1, 2 and 3, 4 and 5 at bits 0 … 2 and 3 … 5;
//            bits 6 and 7 of A and B are the lower bits of steps 6 and 7, bits 6 and 7 of C their upper ones
//            96 bytes = 4 steps where a chunk has at most 16 columns left: 64 bytes with the lower two bits as
//            at 2 bits; 32 bytes with the upper ones, step i of rows 0 … 7 at bit i, of rows 8 … 15 at 4 + i
//   4 bits   64 bytes = 2 steps: lower and upper half of each byte
//   8 bits   32 bytes = 1 step, the codes as they are
//
// Columns beyond the chunk's end are 0 and meet zero activations.
#pragma once

#include <cstdint>
#include <cstring>

namespace ballast {

inline constexpr int64_t kPlaneRows = 16;
inline constexpr int64_t kChunk = 128;
inline constexpr int64_t kVectorBytes = 64;
/// Steps of the longest chunk: 4 columns a step below 8 bits, 2 at 8.
inline constexpr int64_t kMaxSteps = 64;

static constexpr int64_t columns_per_step(int bits) {
  return bits == 8 ? 2 : 4;
}
static constexpr int64_t steps_per_unit(int bits) {
  return bits == 8 ? 1 : bits == 4 ? 2 : bits == 3 ? 8 : 4;
}
static constexpr int64_t bytes_per_step(int bits) {
  return bits == 8 ? 32 : 8 * bits;
}
static constexpr int64_t chunk_steps(int bits, int64_t columns) {
  if (bits == 3) return columns / 32 * 8 + (columns % 32 == 0 ? 0 : columns % 32 <= 16 ? 4 : 8);
  const int64_t unit = steps_per_unit(bits) * columns_per_step(bits);
  return (columns + unit - 1) / unit * steps_per_unit(bits);
}

/// Before the codes of an affine group: 16 binary16 scales, 16 u8 zero points and, where it costs little, padding
/// to a cache line.
static constexpr int64_t affine_fact_bytes(int64_t group_size) {
  return group_size >= kChunk ? 64 : 48;
}

/// How the groups of a row fall into chunks and steps.
struct ChunkShape {
  int bits;
  int64_t group_size, full, tail;  ///< chunks of kChunk columns in a group, and columns of the last, 0: none
  int64_t full_steps, tail_steps;

  int64_t chunks() const { return full + (tail != 0); }
  int64_t group_steps() const { return full * full_steps + tail_steps; }
  int64_t code_bytes() const { return group_steps() * bytes_per_step(bits); }
  int64_t columns(int64_t chunk) const { return chunk < full ? kChunk : tail; }
  int64_t steps(int64_t chunk) const { return chunk < full ? full_steps : tail_steps; }
};
static inline ChunkShape chunk_shape(int bits, int64_t group_size) {
  const int64_t tail = group_size % kChunk;
  return {bits, group_size, group_size / kChunk, tail, chunk_steps(bits, kChunk), chunk_steps(bits, tail)};
}

/// Where one code lies in its chunk: `count` bits at bit `shift` of `byte`; three-bit codes of some columns have
/// their upper bit elsewhere.
struct CodePlace {
  int64_t byte;
  int shift;
  int64_t upper_byte = -1;
  int upper_shift = 0;
};
static inline CodePlace code_place(int bits, int64_t columns, int64_t column, int64_t row) {
  if (bits == 8) return {column / 2 * 32 + row * 2 + column % 2, 0};
  const int64_t step = column / 4, at = row * 4 + column % 4;
  if (bits == 4) return {step / 2 * 64 + at, int(4 * (step % 2))};
  if (bits == 2) return {step / 4 * 64 + at, int(2 * (step % 4))};
  const int64_t unit = column / 32, base = unit * 192;
  if (columns - unit * 32 <= 16)
    return {base + at, int(2 * (step % 4)), base + 64 + at % 32, int(4 * (row / 8) + step % 4)};
  const int64_t in_unit = step % 8;
  if (in_unit < 6) return {base + in_unit / 2 * 64 + at, int(3 * (in_unit % 2))};
  return {base + (in_unit - 6) * 64 + at, 6, base + 128 + at, int(in_unit)};
}
static inline uint8_t code_at(int bits, int64_t columns, int64_t column, int64_t row, const uint8_t* chunk) {
  const CodePlace place = code_place(bits, columns, column, row);
  const int lower = place.upper_byte < 0 ? bits : 2;
  int code = chunk[place.byte] >> place.shift & ((1 << lower) - 1);
  if (place.upper_byte >= 0) code |= (chunk[place.upper_byte] >> place.upper_shift & 1) << 2;
  return uint8_t(code);
}
/// Puts the codes of columns `column` to `column` + 3, a byte each, lowest first, into a chunk that is 0 there.
/// `column` is a multiple of 4; codes beyond the chunk's end are 0.
static inline void put_codes(int bits, int64_t columns, int64_t column, int64_t row, uint32_t codes,
                             uint8_t* chunk) {
  const auto add = [chunk](int64_t byte, uint32_t word) {
    uint32_t there;
    std::memcpy(&there, chunk + byte, 4);
    there |= word;
    std::memcpy(chunk + byte, &there, 4);
  };
  const CodePlace place = code_place(bits, columns, column, row);
  if (bits == 8) {
    std::memcpy(chunk + place.byte, &codes, 2);
    const uint32_t upper = codes >> 16;
    if (column + 2 < columns) std::memcpy(chunk + place.byte + 32, &upper, 2);
  } else if (place.upper_byte < 0) {
    add(place.byte, codes << place.shift);
  } else {
    add(place.byte, (codes & 0x03030303) << place.shift);
    add(place.upper_byte, (codes >> 2 & 0x01010101) << place.upper_shift);
  }
}

// The layout by columns, of layers most of whose inputs may be 0: a column of zero activations is not read.
//
// Per group: the facts of every tile, 48 bytes each, then column after column the codes of all rows in units of
// kColumnUnit rows. A unit is `bits` vectors of 16 bytes in which byte i belongs to row i of each of 8 tiles:
//
//   4 bits   tile j at bits 4·(j % 2) of vector j / 2
//   2 bits   tile j at bits 2·(j % 4) of vector j / 4
//   3 bits   the lower two bits as at 2 bits; the upper one of tile j at bit j of vector 2
inline constexpr int64_t kColumnUnit = 128;
inline constexpr int64_t kUnitTiles = kColumnUnit / kPlaneRows;
inline constexpr int64_t kColumnFactBytes = affine_fact_bytes(0);

struct ColumnShape {
  int bits;
  int64_t group_size, units;

  int64_t unit_bytes() const { return 16 * bits; }
  int64_t column_bytes() const { return units * unit_bytes(); }
  int64_t fact_bytes() const { return units * kUnitTiles * kColumnFactBytes; }
  int64_t group_bytes() const { return fact_bytes() + group_size * column_bytes(); }
};
static inline ColumnShape column_shape(int bits, int64_t group_size, int64_t out_features) {
  return {bits, group_size, (out_features + kColumnUnit - 1) / kColumnUnit};
}
static inline uint8_t code_in_unit(int bits, int64_t row, const uint8_t* unit) {
  const int64_t tile = row / kPlaneRows, byte = row % kPlaneRows;
  if (bits == 4) return uint8_t(unit[tile / 2 * 16 + byte] >> (4 * (tile % 2)) & 15);
  const int lower = unit[tile / 4 * 16 + byte] >> (2 * (tile % 4)) & 3;
  return uint8_t(bits == 2 ? lower : lower | (unit[32 + byte] >> tile & 1) << 2);
}
/// Into a unit that is 0 there.
static inline void put_code_in_unit(int bits, int64_t row, int code, uint8_t* unit) {
  const int64_t tile = row / kPlaneRows, byte = row % kPlaneRows;
  const auto add = [unit](int64_t at, int64_t value) { unit[at] = uint8_t(unit[at] | value); };
  if (bits == 4) return add(tile / 2 * 16 + byte, code << (4 * (tile % 2)));
  add(tile / 4 * 16 + byte, (code & 3) << (2 * (tile % 4)));
  if (bits == 3) add(32 + byte, code >> 2 << tile);
}

}  // namespace ballast
