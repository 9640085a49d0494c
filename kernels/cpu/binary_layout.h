// Residual binary codes for integer kernels (plane_binary.h): where a code lies. Shared by packing and by the kernels of
// every instruction set, so all functions here are static.
//
// A block is cut into chunks of kChunk columns, the last one shorter. In a chunk the columns that are not salient come
// first, then the salient ones, each sort filled up with zeros to whole units of 16 columns, which are packed as codes of
// 2 bits are (plane_layout.h). How many units each sort takes depends on the mask; there is room for the worst.
//
//   per block   [7][16 f16 coefficients], then per chunk binary_units(columns) · 64 bytes of codes
//
// Behind the tiles and the mask, per chunk: the units of plain and of salient columns, a byte each, and for every place
// in its units the column in the chunk, or kNoColumn: 2 + 16 · binary_units(columns) bytes.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/plane_layout.h"

namespace ballast {

inline constexpr int64_t kUnitColumns = 16;
inline constexpr uint8_t kNoColumn = kChunk;
/// Shorter blocks would mostly be filling.
inline constexpr int64_t kShortestBinaryBlock = 64;

static constexpr int64_t binary_units(int64_t columns) {
  return (columns + kUnitColumns - 1) / kUnitColumns + 1;
}
inline constexpr int64_t kBinaryFactBytes = kBinaryCoefficients * 2 * kTileRows;

struct BinaryChunk {
  int64_t index, first, columns;  ///< columns [first, first + columns)
  bool begins_block;
  int64_t facts, codes, order;  ///< bytes from the beginning of the tile, and of what is kept per chunk

  int64_t units() const { return binary_units(columns); }
  int64_t steps() const { return 4 * units(); }
};
/// body(chunk), columns ascending. Returns what would be the next chunk.
template <class Body>
static inline BinaryChunk each_binary_chunk(int64_t in_features, int64_t block_size, Body&& body) {
  BinaryChunk chunk = {0, 0, 0, true, 0, 0, 0};
  while (chunk.first < in_features) {
    const int64_t in_block = chunk.first % block_size;
    chunk.begins_block = in_block == 0;
    if (chunk.begins_block) {
      chunk.facts = chunk.codes;
      chunk.codes += kBinaryFactBytes;
    }
    chunk.columns = block_size - in_block < kChunk ? block_size - in_block : kChunk;
    if (chunk.columns > in_features - chunk.first) chunk.columns = in_features - chunk.first;
    body(static_cast<const BinaryChunk&>(chunk));
    ++chunk.index;
    chunk.first += chunk.columns;
    chunk.codes += chunk.units() * kVectorBytes;
    chunk.order += 2 + chunk.units() * kUnitColumns;
  }
  return chunk;
}

}  // namespace ballast
