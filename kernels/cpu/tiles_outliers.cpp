// Packed weights with outliers: tiles like affine ones, then the outliers of all (layout in kernel_table.h).
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tiles.h"

namespace ballast {
namespace {

// Scale and zero codes are kept in the narrowest width that the kernels read.
int stored_stat_bits(const SparseOutlierView& weight) {
  return weight.stat_bits <= 2 ? 2 : weight.stat_bits <= 4 ? weight.stat_bits : 8;
}

int64_t tile_bytes(const SparseOutlierView& weight) {
  const int64_t groups = weight.in_features / weight.group_size;
  return groups *
         (4 * stored_stat_bits(weight) + 8 + chunk_shape(weight.bits, weight.group_size).code_bytes());
}

int64_t k_blocks(int64_t in_features) {
  return (in_features + kKBlock - 1) / kKBlock;
}

/// What follows the tiles of a matrix with outliers.
struct OutlierPlace {
  int64_t begin;  ///< u32 [tiles · k-blocks + 1]
  int64_t list;   ///< u32 [outliers]
  int64_t end;
};
OutlierPlace outlier_place(const SparseOutlierView& weight) {
  const int64_t tiles = tile_count(weight.out_features);
  OutlierPlace place{};
  place.begin = (tiles * tile_bytes(weight) + 3) / 4 * 4;
  place.list = place.begin + 4 * (tiles * k_blocks(weight.in_features) + 1);
  place.end = place.list + 4 * weight.outliers;
  return place;
}

/// The codes of a row, 0 where an outlier stands in for them.
std::vector<uint8_t> codes_beside_outliers(const SparseOutlierMatrix& source, int64_t row) {
  const auto from = source.codes.begin() + row * source.in_features;
  std::vector<uint8_t> out(from, from + source.in_features);
  for (uint32_t i = source.outlier_rows[size_t(row)]; i < source.outlier_rows[size_t(row) + 1]; ++i)
    out[source.outlier_columns[i]] = 0;
  return out;
}

void pack_tile(const SparseOutlierMatrix& source, int64_t tile, int stat_bits, uint8_t* out) {
  static_assert(kTileRows == SparseOutlierMatrix::kStatRows);
  const int64_t row0 = tile * kTileRows, rows = std::min(kTileRows, source.out_features - row0);
  const int64_t groups = source.groups(), fact_bytes = 4 * stat_bits + 8;
  const ChunkShape shape = chunk_shape(source.bits, source.group_size);
  const int64_t group_bytes = fact_bytes + shape.code_bytes();
  std::memset(out, 0, size_t(groups * group_bytes));
  for (int64_t group = 0; group < groups; ++group) {
    uint8_t* at = out + group * group_bytes;
    put_column(source.scale_codes, groups, group, row0, stat_bits, at);
    put_column(source.zero_codes, groups, group, row0, stat_bits, at + 2 * stat_bits);
    std::memcpy(at + 4 * stat_bits, source.stats.data() + (tile * groups + group) * 4, 8);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<uint8_t> codes = codes_beside_outliers(source, row0 + row);
    for (int64_t group = 0, k = 0; group < groups; ++group) {
      uint8_t* at = out + group * group_bytes + fact_bytes;
      for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk) {
        pack_row_codes(source.bits, codes.data() + k, row, shape.columns(chunk), at);
        k += shape.columns(chunk);
        at += shape.steps(chunk) * bytes_per_step(source.bits);
      }
    }
  }
}

// Outliers by column, then by row. A tile's are neighbours in the canonical form too, so both lists begin at the
// same index.
void pack_outliers(const SparseOutlierMatrix& source, int64_t tile, uint32_t* begin, uint32_t* list) {
  const int64_t row0 = tile * kTileRows, end = std::min(source.out_features, row0 + kTileRows);
  const int64_t blocks = k_blocks(source.in_features);
  const uint32_t first = source.outlier_rows[size_t(row0)], last = source.outlier_rows[size_t(end)];
  std::vector<uint32_t> next(static_cast<size_t>(blocks + 1));
  for (uint32_t i = first; i < last; ++i) ++next[size_t(source.outlier_columns[i] / kKBlock + 1)];
  next[0] = first;
  for (int64_t block = 0; block < blocks; ++block) {
    begin[tile * blocks + block] = next[size_t(block)];
    next[size_t(block + 1)] += next[size_t(block)];
  }
  for (int64_t row = row0; row < end; ++row)
    for (uint32_t i = source.outlier_rows[size_t(row)]; i < source.outlier_rows[size_t(row) + 1]; ++i) {
      const int64_t column = source.outlier_columns[i];
      const uint32_t place = uint32_t(column % kKBlock * kTileRows + row - row0);
      list[next[size_t(column / kKBlock)]++] = place | uint32_t(source.outlier_values[i]) << 16;
    }
  for (int64_t block = 0; block < blocks; ++block)
    std::sort(list + begin[tile * blocks + block], list + next[size_t(block)],
              [](uint32_t a, uint32_t b) { return (a & 0xFFFFu) < (b & 0xFFFFu); });
}

}  // namespace

TiledWeight tiled(const SparseOutlierView& weight) {
  const OutlierPlace place = outlier_place(weight);
  const uint8_t* data = weight.data.as<uint8_t>();
  TiledWeight out{data, tile_bytes(weight), weight.in_features, weight.group_size, TileKind::outliers8};
  if (weight.bits == 2) out.kind = TileKind::outliers2;
  if (weight.bits == 3) out.kind = TileKind::outliers3;
  if (weight.bits == 4) out.kind = TileKind::outliers4;
  CHECK(out.kind != TileKind::outliers8 || weight.bits == 8, "no kernel for ", weight.bits, " bits");
  out.stat_bits = stored_stat_bits(weight);
  out.outlier_begin = reinterpret_cast<const uint32_t*>(data + place.begin);
  out.outliers = reinterpret_cast<const uint32_t*>(data + place.list);
  return out;
}

int64_t CpuBackend::packed_bytes(const SparseOutlierView& weight) const {
  return outlier_place(weight).end + kTileSlack;
}

void CpuBackend::pack(const SparseOutlierMatrix& source, const SparseOutlierView& weight, void* blob) {
  CHECK(source.out_features == weight.out_features && source.in_features == weight.in_features &&
        source.bits == weight.bits && source.stat_bits == weight.stat_bits &&
        source.group_size == weight.group_size && int64_t(source.outlier_values.size()) == weight.outliers);
  const int64_t bytes = tile_bytes(weight), tiles = tile_count(weight.out_features);
  const OutlierPlace place = outlier_place(weight);
  uint8_t* data = static_cast<uint8_t*>(blob);
  uint32_t* begin = reinterpret_cast<uint32_t*>(data + place.begin);
  uint32_t* list = reinterpret_cast<uint32_t*>(data + place.list);
  pool_.parallel(tiles, [&](int, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      pack_tile(source, tile, stored_stat_bits(weight), data + tile * bytes);
      pack_outliers(source, tile, begin, list);
    }
  });
  begin[tiles * k_blocks(weight.in_features)] = uint32_t(weight.outliers);
}

}  // namespace ballast
