// Packed residual binary weights (layout in kernel_table.h).
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

constexpr int64_t kFactBytes = kBinaryCoefficients * 2 * kTileRows;

int64_t code_bytes(int64_t columns) {
  return (columns + kCodesOfWord - 1) / kCodesOfWord * kTileRows * int64_t(sizeof(uint32_t));
}

int64_t tile_bytes(const ResidualBinaryView& weight) {
  const int64_t whole = weight.in_features / weight.block_size, rest = weight.in_features % weight.block_size;
  return weight.blocks() * kFactBytes + whole * code_bytes(weight.block_size) + code_bytes(rest);
}

void pack_tile(const ResidualBinaryMatrix& source, int64_t tile, uint8_t* out) {
  static_assert(kBinaryCoefficients == ResidualBinaryMatrix::kCoefficients);
  const int64_t row0 = tile * kTileRows, rows = std::min(kTileRows, source.out_features - row0);
  for (int64_t block = 0; block < source.blocks(); ++block) {
    uint16_t coefficients[kBinaryCoefficients][kTileRows] = {};
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < kBinaryCoefficients; ++i)
        coefficients[i][row] =
            source.coefficients[size_t(((row0 + row) * source.blocks() + block) * kBinaryCoefficients + i)];
    std::memcpy(out, coefficients, sizeof coefficients);
    out += sizeof coefficients;
    const int64_t end = std::min(source.in_features, (block + 1) * source.block_size);
    for (int64_t k = block * source.block_size; k < end; k += kCodesOfWord) {
      uint32_t words[kTileRows] = {};
      for (int64_t row = 0; row < rows; ++row) {
        const uint8_t* codes = source.codes.data() + (row0 + row) * source.in_features + k;
        for (int64_t i = 0; i < std::min(kCodesOfWord, end - k); ++i)
          words[row] |= uint32_t(codes[i]) << (30 - 2 * i);
      }
      std::memcpy(out, words, sizeof words);
      out += sizeof words;
    }
  }
}

}  // namespace

TiledWeight tiled(const ResidualBinaryView& weight) {
  const uint8_t* data = weight.data.as<uint8_t>();
  TiledWeight out{data, tile_bytes(weight), weight.in_features, weight.block_size, TileKind::residual_binary};
  out.salient = data + tile_count(weight.out_features) * out.tile_bytes;
  return out;
}

int64_t CpuBackend::packed_bytes(const ResidualBinaryView& weight) const {
  return tile_count(weight.out_features) * tile_bytes(weight) + (weight.in_features + 7) / 8 + kTileSlack;
}

void CpuBackend::pack(const ResidualBinaryMatrix& source, const ResidualBinaryView& weight, void* blob) {
  CHECK(source.out_features == weight.out_features && source.in_features == weight.in_features &&
        source.block_size == weight.block_size);
  const int64_t bytes = tile_bytes(weight), tiles = tile_count(weight.out_features);
  uint8_t* data = static_cast<uint8_t*>(blob);
  pool_.parallel(tiles, [&](int, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) pack_tile(source, tile, data + tile * bytes);
  });
  uint8_t* salient = data + tiles * bytes;
  std::memset(salient, 0, size_t((weight.in_features + 7) / 8));
  for (int64_t k = 0; k < weight.in_features; ++k)
    salient[k / 8] = uint8_t(salient[k / 8] | source.salient[size_t(k)] << (k % 8));
}

}  // namespace ballast
