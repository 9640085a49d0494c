// Packed weights to f32, one instruction set (see simd.h). A decoded value has the very bits of the canonical
// form's decode_row; layouts are in kernel_table.h.
#pragma once

#include "kernels/cpu/binary_layout.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/plane_layout.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

// Group by group, chunk by chunk: body(chunk, columns of the chunk, first column, facts of the group).
template <class Body>
static inline void each_chunk(const TiledWeight& weight, int64_t tile, int bits, int64_t fact_bytes,
                              Body&& body) {
  const ChunkShape shape = chunk_shape(bits, weight.group_size);
  const uint8_t* at = weight.data + tile * weight.tile_bytes;
  for (int64_t k = 0; k < weight.in_features;) {
    const uint8_t* facts = at;
    at += fact_bytes;
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk) {
      const int64_t columns = shape.columns(chunk);
      body(at, columns, k, facts);
      at += shape.steps(chunk) * bytes_per_step(bits);
      k += columns;
    }
  }
}

// The float form is only the reference and the way of tokens that are not finite, so nothing here is hurried.
static inline float affine_scale(const uint8_t* facts, int64_t row) {
  uint16_t half;
  __builtin_memcpy(&half, facts + 2 * row, sizeof half);
  return half_to_float(half);
}
static inline float affine_zero(const TiledWeight& weight, const uint8_t* facts, int64_t row) {
  const float fact = facts[2 * kTileRows + row];
  return weight.half_zeros ? 0.5f * fact : fact;
}
static inline ColumnShape column_shape(int bits, const TiledWeight& weight) {
  return {bits, weight.group_size, weight.column_units};
}
static void decode_columns(const TiledWeight& weight, int64_t tile, int bits, int64_t k0, int64_t count,
                           float* out) {
  const ColumnShape shape = column_shape(bits, weight);
  for (int64_t k = k0; k < k0 + count; ++k, out += kTileRows) {
    const uint8_t* group = weight.data + k / weight.group_size * shape.group_bytes();
    const uint8_t* facts = group + tile * kColumnFactBytes;
    const uint8_t* unit = group + shape.fact_bytes() + k % weight.group_size * shape.column_bytes() +
                          tile / kUnitTiles * shape.unit_bytes();
    for (int64_t row = 0; row < kTileRows; ++row) {
      const int code = code_in_unit(bits, tile % kUnitTiles * kTileRows + row, unit);
      out[row] = affine_scale(facts, row) * (float(code) - affine_zero(weight, facts, row));
    }
  }
}
static void decode_affine(const TiledWeight& weight, int64_t tile, int bits, int64_t k0, int64_t count,
                          float* out) {
  if (weight.column_units > 0) return decode_columns(weight, tile, bits, k0, count, out);
  each_chunk(weight, tile, bits, affine_fact_bytes(weight.group_size),
             [&](const uint8_t* chunk, int64_t columns, int64_t first, const uint8_t* facts) {
               const int64_t begin = first > k0 ? first : k0;
               const int64_t end = first + columns < k0 + count ? first + columns : k0 + count;
               for (int64_t row = 0; row < kTileRows; ++row) {
                 const float scale = affine_scale(facts, row), zero = affine_zero(weight, facts, row);
                 for (int64_t k = begin; k < end; ++k)
                   out[(k - k0) * kTileRows + row] =
                       scale * (float(code_at(bits, columns, k - first, row, chunk)) - zero);
               }
             });
}
static void decode_affine_row(const TiledWeight& weight, int64_t row, int bits, bool accumulate, float* out) {
  const int64_t lane = row % kTileRows;
  each_chunk(weight, row / kTileRows, bits, affine_fact_bytes(weight.group_size),
             [&](const uint8_t* chunk, int64_t columns, int64_t first, const uint8_t* facts) {
               const float scale = affine_scale(facts, lane), zero = affine_zero(weight, facts, lane);
               for (int64_t k = 0; k < columns; ++k) {
                 const float value = scale * (float(code_at(bits, columns, k, lane, chunk)) - zero);
                 out[first + k] = accumulate ? out[first + k] + value : value;
               }
             });
}

static inline F load_codes_of(int bits, const uint8_t* p) {
  switch (bits) {
    case 2:
      return load_codes<2>(p);
    case 3:
      return load_codes<3>(p);
    case 4:
      return load_codes<4>(p);
    default:
      return load_codes<8>(p);
  }
}

static inline int64_t outlier_fact_bytes(int stat_bits) {
  return 4 * stat_bits + 8;
}
// Scale and zero point are no short numbers here, so each operation rounds where the canonical form does:
// nothing may be fused.
struct OutlierFacts {
  F scale, zero;
};
static inline OutlierFacts outlier_facts(const TiledWeight& weight, const uint8_t* facts) {
  const int64_t stat_bytes = 2 * weight.stat_bits;
  uint16_t stats[4];
  __builtin_memcpy(stats, facts + 2 * stat_bytes, sizeof stats);
  return {add(broadcast(half_to_float(stats[0])),
              mul(broadcast(half_to_float(stats[1])), load_codes_of(weight.stat_bits, facts))),
          add(broadcast(half_to_float(stats[2])),
              mul(broadcast(half_to_float(stats[3])), load_codes_of(weight.stat_bits, facts + stat_bytes)))};
}

static void decode_outliers(const TiledWeight& weight, int64_t tile, int bits, int64_t k0, int64_t count,
                            float* out) {
  each_chunk(weight, tile, bits, outlier_fact_bytes(weight.stat_bits),
             [&](const uint8_t* chunk, int64_t columns, int64_t first, const uint8_t* at) {
               const int64_t begin = first > k0 ? first : k0;
               const int64_t end = first + columns < k0 + count ? first + columns : k0 + count;
               if (begin >= end) return;
               const OutlierFacts facts = outlier_facts(weight, at);
               for (int64_t k = begin; k < end; ++k) {
                 float codes[kTileRows];
                 for (int64_t row = 0; row < kTileRows; ++row)
                   codes[row] = float(code_at(bits, columns, k - first, row, chunk));
                 store(out + (k - k0) * kTileRows, mul(facts.scale, sub(load(codes), facts.zero)));
               }
             });
  const uint32_t* begin =
      weight.outlier_begin + tile * ((weight.in_features + kKBlock - 1) / kKBlock) + k0 / kKBlock;
  for (uint32_t i = begin[0]; i < begin[1]; ++i)
    out[weight.outliers[i] & 0xFFFFu] = half_to_float(uint16_t(weight.outliers[i] >> 16));
}

// values[salient][code], 16 rows each; coefficients are added in the canonical form's order.
static inline void binary_tables(const uint16_t* coefficients, F (*values)[4]) {
  F c[kBinaryCoefficients];
  for (int i = 0; i < kBinaryCoefficients; ++i) c[i] = load_half(coefficients + i * kTileRows);
  const F minus = sub(c[0], c[1]), plus = add(c[0], c[1]);
  values[1][0] = sub(minus, c[2]);
  values[1][1] = sub(plus, c[2]);
  values[1][2] = add(minus, c[2]);
  values[1][3] = add(plus, c[2]);
  values[0][0] = sub(c[3], c[4]);
  values[0][1] = add(c[3], c[4]);
  values[0][2] = sub(c[5], c[6]);
  values[0][3] = add(c[5], c[6]);
}

// A bit for each of `columns` columns, at most 16, from `k` on.
static inline uint32_t salient_columns(const uint8_t* salient, int64_t k, int64_t columns) {
  uint32_t bits = 0;
  for (int64_t byte = k / 8; byte <= (k + columns - 1) / 8; ++byte)
    bits |= uint32_t(salient[byte]) << (8 * (byte - k / 8));
  return bits >> (k % 8) & ((1u << columns) - 1);
}

// Of codes for integer kernels, which come here for tokens that are not finite only: nothing is hurried.
static void decode_ordered_binary(const TiledWeight& weight, const uint8_t* tile, int64_t k0, int64_t count,
                                  float* out) {
  each_binary_chunk(weight.in_features, weight.group_size, [&](const BinaryChunk& chunk) {
    if (chunk.first >= k0 + count || chunk.first + chunk.columns <= k0) return;
    F values[2][4];
    binary_tables(reinterpret_cast<const uint16_t*>(tile + chunk.facts), values);
    float floats[2][4][kTileRows];
    for (int sort = 0; sort < 2; ++sort)
      for (int code = 0; code < 4; ++code) store(floats[sort][code], values[sort][code]);
    const uint8_t* const order = weight.binary_order + chunk.order;
    const int64_t plain = order[0] * kUnitColumns, places = plain + order[1] * kUnitColumns;
    for (int64_t i = 0; i < places; ++i) {
      const int64_t k = chunk.first + order[2 + i] - k0;
      if (order[2 + i] == kNoColumn || k < 0 || k >= count) continue;
      const uint8_t* const codes = tile + chunk.codes + i / kUnitColumns * kVectorBytes + i % 4;
      for (int64_t row = 0; row < kTileRows; ++row)
        out[k * kTileRows + row] = floats[i >= plain][codes[4 * row] >> (2 * (i / 4 % 4)) & 3][row];
    }
  });
}

// All columns as if none were salient, from registers, then those that are once more: they are few.
static void decode_residual_binary(const TiledWeight& weight, const uint8_t* tile, int64_t k0, int64_t count,
                                   float* out) {
  if (weight.binary_order) return decode_ordered_binary(weight, tile, k0, count, out);
  constexpr int64_t kWordBytes = 4 * kTileRows;
  const int64_t per_block =
      kBinaryFactBytes + (weight.group_size + kCodesOfWord - 1) / kCodesOfWord * kWordBytes;
  for (int64_t k = k0; k < k0 + count;) {
    const int64_t block = k / weight.group_size;
    int64_t end = (block + 1) * weight.group_size;
    if (end > k0 + count) end = k0 + count;
    const uint8_t* facts = tile + block * per_block;
    F values[2][4];
    binary_tables(reinterpret_cast<const uint16_t*>(facts), values);
    while (k < end) {
      const int64_t in_block = k - block * weight.group_size, first_code = in_block % kCodesOfWord;
      const int64_t columns = end - k < kCodesOfWord - first_code ? end - k : kCodesOfWord - first_code;
      const Codes codes =
          skip(load_words(facts + kBinaryFactBytes + in_block / kCodesOfWord * kWordBytes), int(first_code));
      Codes left = codes;
      if (columns == kCodesOfWord) {
#pragma GCC unroll 16
        for (int i = 0; i < kCodesOfWord; ++i, left = skip_one(left))
          store(out + i * kTileRows, choose(left, values[0]));
      } else {
        for (int64_t i = 0; i < columns; ++i, left = skip_one(left))
          store(out + i * kTileRows, choose(left, values[0]));
      }
      for (uint32_t salient = salient_columns(weight.salient, k, columns); salient; salient &= salient - 1) {
        const int i = __builtin_ctz(salient);
        store(out + i * kTileRows, choose(skip(codes, i), values[1]));
      }
      k += columns;
      out += columns * kTileRows;
    }
  }
}

// Weights k0 … k0+count of a tile as f32 [k][16]; f32 tiles are used in place. k0 is a multiple of kKBlock,
// count at most kKBlock.
static const float* decode_block(const TiledWeight& weight, int64_t tile_index, int64_t k0, int64_t count,
                                 float* out) {
  const uint8_t* tile = weight.data + tile_index * weight.tile_bytes;
  switch (weight.kind) {
    case TileKind::f32:
      return reinterpret_cast<const float*>(tile) + k0 * kTileRows;
    case TileKind::f16:
      for (int64_t k = 0; k < count; ++k)
        store(out + k * kTileRows, load_half(reinterpret_cast<const uint16_t*>(tile) + (k0 + k) * kTileRows));
      break;
    case TileKind::bf16:
      for (int64_t k = 0; k < count; ++k)
        store(out + k * kTileRows,
              load_bfloat(reinterpret_cast<const uint16_t*>(tile) + (k0 + k) * kTileRows));
      break;
    case TileKind::affine2:
      decode_affine(weight, tile_index, 2, k0, count, out);
      break;
    case TileKind::affine3:
      decode_affine(weight, tile_index, 3, k0, count, out);
      break;
    case TileKind::affine4:
      decode_affine(weight, tile_index, 4, k0, count, out);
      break;
    case TileKind::affine8:
      decode_affine(weight, tile_index, 8, k0, count, out);
      break;
    case TileKind::outliers2:
      decode_outliers(weight, tile_index, 2, k0, count, out);
      break;
    case TileKind::outliers3:
      decode_outliers(weight, tile_index, 3, k0, count, out);
      break;
    case TileKind::outliers4:
      decode_outliers(weight, tile_index, 4, k0, count, out);
      break;
    case TileKind::outliers8:
      decode_outliers(weight, tile_index, 8, k0, count, out);
      break;
    case TileKind::residual_binary:
      decode_residual_binary(weight, tile, k0, count, out);
      break;
  }
  return out;
}

}  // namespace ballast::BALLAST_ISA
