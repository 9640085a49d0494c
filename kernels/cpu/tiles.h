// Packed weights of the CPU backend: tiles of 16 output rows (layout in kernel_table.h).
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/kernel_table.h"

namespace ballast {

constexpr int64_t tile_count(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

TiledWeight tiled(const DenseView& weight);
TiledWeight tiled(const AffineView& weight);

/// tile[k][lane] = source[k][tile·16 + lane] for a row-major f32 source [depth, columns]; lanes beyond
/// columns are 0.
void fill_tile(const float* source, int64_t stride, int64_t depth, int64_t columns, int64_t tile, float* out);

}  // namespace ballast
