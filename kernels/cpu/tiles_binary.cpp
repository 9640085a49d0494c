// Packed residual binary weights (layouts in kernel_table.h and binary_layout.h).
#include <algorithm>
#include <cstring>

#include "kernels/cpu/binary_layout.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

int64_t code_bytes(int64_t columns) {
  return (columns + kCodesOfWord - 1) / kCodesOfWord * kTileRows * int64_t(sizeof(uint32_t));
}

int64_t tile_bytes(const ResidualBinaryView& weight) {
  const int64_t whole = weight.in_features / weight.block_size, rest = weight.in_features % weight.block_size;
  return weight.blocks() * kBinaryFactBytes + whole * code_bytes(weight.block_size) + code_bytes(rest);
}

constexpr auto kNothing = [](const BinaryChunk&) {};

int64_t ordered_tile_bytes(const ResidualBinaryView& weight) {
  return each_binary_chunk(weight.in_features, weight.block_size, kNothing).codes;
}

int64_t order_bytes(const ResidualBinaryView& weight) {
  return each_binary_chunk(weight.in_features, weight.block_size, kNothing).order;
}

int64_t mask_bytes(const ResidualBinaryView& weight) {
  return (weight.in_features + 7) / 8;
}

// Of a row's blocks in a tile: [7][16 rows].
void put_coefficients(const ResidualBinaryMatrix& source, int64_t row0, int64_t rows, int64_t block,
                      uint8_t* out) {
  static_assert(kBinaryCoefficients == ResidualBinaryMatrix::kCoefficients);
  uint16_t coefficients[kBinaryCoefficients][kTileRows] = {};
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < kBinaryCoefficients; ++i)
      coefficients[i][row] =
          source.coefficients[size_t(((row0 + row) * source.blocks() + block) * kBinaryCoefficients + i)];
  std::memcpy(out, coefficients, sizeof coefficients);
}

void pack_tile(const ResidualBinaryMatrix& source, int64_t tile, uint8_t* out) {
  const int64_t row0 = tile * kTileRows, rows = std::min(kTileRows, source.out_features - row0);
  for (int64_t block = 0; block < source.blocks(); ++block) {
    put_coefficients(source, row0, rows, block, out);
    out += kBinaryFactBytes;
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

void fill_order(const ResidualBinaryMatrix& source, uint8_t* out) {
  each_binary_chunk(source.in_features, source.block_size, [&](const BinaryChunk& chunk) {
    uint8_t* const order = out + chunk.order;
    std::memset(order + 2, kNoColumn, size_t(chunk.units() * kUnitColumns));
    int64_t place = 0;
    for (int sort = 0; sort < 2; ++sort) {
      const int64_t begin = place;
      for (int64_t k = 0; k < chunk.columns; ++k)
        if (source.salient[size_t(chunk.first + k)] == sort) order[2 + place++] = uint8_t(k);
      place = (place + kUnitColumns - 1) / kUnitColumns * kUnitColumns;
      order[sort] = uint8_t((place - begin) / kUnitColumns);
    }
  });
}

// `out` is 0 there.
void pack_ordered_tile(const ResidualBinaryMatrix& source, const uint8_t* orders, int64_t tile,
                       uint8_t* out) {
  const int64_t row0 = tile * kTileRows, rows = std::min(kTileRows, source.out_features - row0);
  each_binary_chunk(source.in_features, source.block_size, [&](const BinaryChunk& chunk) {
    if (chunk.begins_block)
      put_coefficients(source, row0, rows, chunk.first / source.block_size, out + chunk.facts);
    const uint8_t* const order = orders + chunk.order;
    for (int64_t i = 0; i < (order[0] + order[1]) * kUnitColumns; ++i) {
      if (order[2 + i] == kNoColumn) continue;
      uint8_t* const to = out + chunk.codes + i / kUnitColumns * kVectorBytes + i % 4;
      const uint8_t* const codes =
          source.codes.data() + row0 * source.in_features + chunk.first + order[2 + i];
      for (int64_t row = 0; row < rows; ++row)
        to[4 * row] = uint8_t(to[4 * row] | codes[row * source.in_features] << (2 * (i / 4 % 4)));
    }
  });
}

}  // namespace

TiledWeight tiled(const ResidualBinaryView& weight, bool ordered) {
  const uint8_t* data = weight.data.as<uint8_t>();
  TiledWeight out{data, ordered ? ordered_tile_bytes(weight) : tile_bytes(weight), weight.in_features,
                  weight.block_size, TileKind::residual_binary};
  out.salient = data + tile_count(weight.out_features) * out.tile_bytes;
  if (ordered) out.binary_order = out.salient + mask_bytes(weight);
  return out;
}

bool CpuBackend::has_ordered_codes(const ResidualBinaryView& weight) const {
  return activations_ == ActivationMode::int8 && weight.block_size >= kShortestBinaryBlock;
}

int64_t CpuBackend::packed_bytes(const ResidualBinaryView& weight) const {
  const bool ordered = has_ordered_codes(weight);
  return tile_count(weight.out_features) * (ordered ? ordered_tile_bytes(weight) : tile_bytes(weight)) +
         mask_bytes(weight) + (ordered ? order_bytes(weight) : 0) + kTileSlack;
}

void CpuBackend::pack(const ResidualBinaryMatrix& source, const ResidualBinaryView& weight, void* blob) {
  CHECK(source.out_features == weight.out_features && source.in_features == weight.in_features &&
        source.block_size == weight.block_size);
  const bool ordered = has_ordered_codes(weight);
  const int64_t bytes = ordered ? ordered_tile_bytes(weight) : tile_bytes(weight),
                tiles = tile_count(weight.out_features);
  uint8_t* data = static_cast<uint8_t*>(blob);
  uint8_t* salient = data + tiles * bytes;
  uint8_t* const order = salient + mask_bytes(weight);
  if (ordered) fill_order(source, order);
  pool_.parallel(tiles, [&](int, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      uint8_t* const out = data + tile * bytes;
      if (!ordered) {
        pack_tile(source, tile, out);
        continue;
      }
      std::memset(out, 0, size_t(bytes));
      pack_ordered_tile(source, order, tile, out);
    }
  });
  std::memset(salient, 0, size_t(mask_bytes(weight)));
  for (int64_t k = 0; k < weight.in_features; ++k)
    salient[k / 8] = uint8_t(salient[k / 8] | source.salient[size_t(k)] << (k % 8));
}

}  // namespace ballast
