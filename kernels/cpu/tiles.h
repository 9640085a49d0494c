// Packed weights of the CPU backend: tiles of 16 output rows (layout in kernel_table.h).
#pragma once

#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/plane_layout.h"

namespace ballast {

constexpr int64_t tile_count(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

TiledWeight tiled(const DenseView& weight);
TiledWeight tiled(const AffineView& weight);
TiledWeight tiled(const SparseOutlierView& weight);
/// `ordered`: packed for integer kernels (binary_layout.h).
TiledWeight tiled(const ResidualBinaryView& weight, bool ordered);

/// The widest load of the kernels may read this much past the last code.
inline constexpr int64_t kTileSlack = 64;

/// Packs a row's codes of one chunk, `columns` of them, into a chunk that is 0 there.
void pack_row_codes(int bits, const uint8_t* codes, int64_t row, int64_t columns, uint8_t* chunk);

/// Packs the codes of rows row0 … row0+15 in one column of `codes` [rows, columns], row0 in the lowest bits, into
/// 2·bits bytes. Rows beyond the last are 0.
void put_column(const std::vector<uint8_t>& codes, int64_t columns, int64_t column, int64_t row0, int bits,
                uint8_t* out);

/// tile[k][lane] = source[k·k_stride + (tile·16 + lane)·column_stride] for an f32 source of `depth` k and
/// `columns`; lanes beyond columns are 0.
void fill_tile(const float* source, int64_t k_stride, int64_t depth, int64_t columns, int64_t tile,
               float* out, int64_t column_stride = 1);

/// Activations in the form that LinearTask reads: element (token, k) is factor · x[token·token_stride +
/// k·k_stride].
struct TokenBlocks {
  const float* x;
  int64_t tokens, features;
  int64_t token_stride, k_stride;
  float factor;
  int64_t block;  ///< KernelTable::token_block

  int64_t count() const { return (tokens + block - 1) / block; }
};
/// Blocks [first, last) of `out`, which starts with block 0.
void fill_blocks(const TokenBlocks& task, int64_t first, int64_t last, float* out);

}  // namespace ballast
