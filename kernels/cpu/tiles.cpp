#include "kernels/cpu/tiles.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

static_assert(kPlaneRows == kTileRows);

int64_t tile_bytes(const DenseView& weight) {
  return weight.in_features * kTileRows * size_of(weight.dtype);
}

ColumnShape columns_of(const AffineView& weight) {
  CHECK(weight.bits < 8, weight.bits, " bits by columns");
  return column_shape(weight.bits, weight.group_size, weight.out_features);
}

int64_t tile_bytes(const AffineView& weight) {
  const int64_t groups = weight.in_features / weight.group_size;
  return groups *
         (affine_fact_bytes(weight.group_size) + chunk_shape(weight.bits, weight.group_size).code_bytes());
}

// source [rows of the tile, in_features] of Element -> [k][16]
template <class Element>
void pack_tile(const std::byte* source, int64_t row_bytes, int64_t rows, int64_t in_features, Element* out) {
  std::memset(out, 0, size_t(in_features * kTileRows) * sizeof(Element));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < in_features; ++k)
      std::memcpy(out + k * kTileRows + row, source + row * row_bytes + k * int64_t(sizeof(Element)),
                  sizeof(Element));
}

template <int kBits>
void pack_chunk(const uint8_t* codes, int64_t row, int64_t columns, uint8_t* out) {
  const int64_t whole = columns / 4 * 4;
  uint32_t four;
  for (int64_t k = 0; k < whole; k += 4) {
    std::memcpy(&four, codes + k, 4);
    put_codes(kBits, columns, k, row, four, out);
  }
  if (whole == columns) return;
  four = 0;
  std::memcpy(&four, codes + whole, size_t(columns - whole));
  put_codes(kBits, columns, whole, row, four, out);
}

uint8_t zero_fact(const AffineMatrix& source, size_t at) {
  const uint8_t stored = source.zero_points[at];
  return source.half_zeros ? uint8_t(twice_zero(stored, source.bits, true)) : stored;
}

void pack_tile(const AffineMatrix& source, int64_t tile, uint8_t* out) {
  const int64_t row0 = tile * kTileRows, rows = std::min(kTileRows, source.out_features - row0);
  const ChunkShape shape = chunk_shape(source.bits, source.group_size);
  for (int64_t group = 0; group < source.groups(); ++group) {
    const int64_t fact_bytes = affine_fact_bytes(source.group_size);
    std::memset(out, 0, size_t(fact_bytes + shape.code_bytes()));
    for (int64_t row = 0; row < rows; ++row) {
      const size_t at = size_t((row0 + row) * source.groups() + group);
      std::memcpy(out + 2 * row, &source.scales[at], 2);
      out[2 * kTileRows + row] = zero_fact(source, at);
    }
    out += fact_bytes;
    for (int64_t chunk = 0; chunk < shape.chunks(); ++chunk) {
      const uint8_t* codes =
          source.codes.data() + row0 * source.in_features + group * source.group_size + chunk * kChunk;
      for (int64_t row = 0; row < rows; ++row)
        pack_row_codes(source.bits, codes + row * source.in_features, row, shape.columns(chunk), out);
      out += shape.steps(chunk) * bytes_per_step(source.bits);
    }
  }
}

// Units [first, last) of all groups.
void pack_columns(const AffineMatrix& source, const ColumnShape& shape, int64_t first, int64_t last,
                  uint8_t* blob) {
  for (int64_t group = 0; group < source.groups(); ++group) {
    uint8_t* facts = blob + group * shape.group_bytes();
    uint8_t* codes = facts + shape.fact_bytes();
    for (int64_t unit = first; unit < last; ++unit) {
      uint8_t* unit_facts = facts + unit * kUnitTiles * kColumnFactBytes;
      std::memset(unit_facts, 0, size_t(kUnitTiles * kColumnFactBytes));
      for (int64_t column = 0; column < source.group_size; ++column)
        std::memset(codes + column * shape.column_bytes() + unit * shape.unit_bytes(), 0,
                    size_t(shape.unit_bytes()));
      const int64_t row0 = unit * kColumnUnit, rows = std::min(kColumnUnit, source.out_features - row0);
      for (int64_t row = 0; row < rows; ++row) {
        const size_t at = size_t((row0 + row) * source.groups() + group);
        uint8_t* tile_facts = unit_facts + row / kTileRows * kColumnFactBytes;
        std::memcpy(tile_facts + 2 * (row % kTileRows), &source.scales[at], 2);
        tile_facts[2 * kTileRows + row % kTileRows] = zero_fact(source, at);
        const uint8_t* from =
            source.codes.data() + (row0 + row) * source.in_features + group * source.group_size;
        for (int64_t column = 0; column < source.group_size; ++column)
          put_code_in_unit(source.bits, row, from[column],
                           codes + column * shape.column_bytes() + unit * shape.unit_bytes());
      }
    }
  }
}

}  // namespace

void pack_row_codes(int bits, const uint8_t* codes, int64_t row, int64_t columns, uint8_t* chunk) {
  switch (bits) {
    case 2:
      return pack_chunk<2>(codes, row, columns, chunk);
    case 3:
      return pack_chunk<3>(codes, row, columns, chunk);
    case 4:
      return pack_chunk<4>(codes, row, columns, chunk);
    default:
      return pack_chunk<8>(codes, row, columns, chunk);
  }
}

TiledWeight tiled(const DenseView& weight) {
  const TileKind kind = weight.dtype == DType::f32   ? TileKind::f32
                        : weight.dtype == DType::f16 ? TileKind::f16
                                                     : TileKind::bf16;
  return {weight.data.as<uint8_t>(), tile_bytes(weight), weight.in_features, 0, kind};
}

TiledWeight tiled(const AffineView& weight) {
  TileKind kind = TileKind::affine8;
  switch (weight.bits) {
    case 2:
      kind = TileKind::affine2;
      break;
    case 3:
      kind = TileKind::affine3;
      break;
    case 4:
      kind = TileKind::affine4;
      break;
    case 8:
      break;
    default:
      CHECK(false, "no kernel for ", weight.bits, " bits");
  }
  TiledWeight out{weight.data.as<uint8_t>(), tile_bytes(weight), weight.in_features, weight.group_size, kind};
  if (weight.by_columns) out.column_units = columns_of(weight).units;
  out.half_zeros = weight.half_zeros;
  return out;
}

void put_column(const std::vector<uint8_t>& codes, int64_t columns, int64_t column, int64_t row0, int bits,
                uint8_t* out) {
  std::memset(out, 0, size_t(2 * bits));
  const int64_t rows = std::min(kTileRows, int64_t(codes.size()) / columns - row0);
  for (int64_t row = 0; row < rows; ++row) {
    const uint32_t code = codes[size_t((row0 + row) * columns + column)];
    for (int64_t bit = 0; bit < bits; ++bit) {
      const int64_t at = row * bits + bit;
      out[at / 8] = uint8_t(out[at / 8] | (code >> bit & 1u) << (at % 8));
    }
  }
}

namespace {

typedef float Four __attribute__((vector_size(16)));
typedef float Two __attribute__((vector_size(8)));

inline Four four_of(const float* in, float factor) {
  Four row;
  std::memcpy(&row, in, sizeof row);
  return factor * row;
}

// Four columns of four rows, out[k][row], by shuffles. No arrays: compilers do not unroll loops over them at -O2, and
// then every row takes a way through memory.
inline void transpose4(const float* in, int64_t row_stride, float factor, float* out, int64_t width) {
  const Four a = four_of(in, factor), b = four_of(in + row_stride, factor),
             c = four_of(in + 2 * row_stride, factor), d = four_of(in + 3 * row_stride, factor);
  const Four ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Four k0 = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5),
             k1 = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
             k2 = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5),
             k3 = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
  std::memcpy(out, &k0, sizeof k0);
  std::memcpy(out + width, &k1, sizeof k1);
  std::memcpy(out + 2 * width, &k2, sizeof k2);
  std::memcpy(out + 3 * width, &k3, sizeof k3);
}

// The same of two rows: what AVX2's blocks of six tokens have left.
inline void transpose2(const float* in, int64_t row_stride, float factor, float* out, int64_t width) {
  const Four a = four_of(in, factor), b = four_of(in + row_stride, factor);
  const Four low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
             high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Two k0 = __builtin_shufflevector(low, low, 0, 1), k1 = __builtin_shufflevector(low, low, 2, 3),
            k2 = __builtin_shufflevector(high, high, 0, 1), k3 = __builtin_shufflevector(high, high, 2, 3);
  std::memcpy(out, &k0, sizeof k0);
  std::memcpy(out + width, &k1, sizeof k1);
  std::memcpy(out + 2 * width, &k2, sizeof k2);
  std::memcpy(out + 3 * width, &k3, sizeof k3);
}

}  // namespace

void fill_tile(const float* source, int64_t k_stride, int64_t depth, int64_t columns, int64_t tile,
               float* out, int64_t column_stride) {
  const int64_t width = std::min(kTileRows, columns - tile * kTileRows);
  source += tile * kTileRows * column_stride;
  if (column_stride != 1 && k_stride == 1) {  // read along k
    const int64_t fours = depth / 4 * 4, lanes = width / 4 * 4;
    for (int64_t k = 0; k < fours; k += 4) {
      for (int64_t lane = 0; lane < lanes; lane += 4)
        transpose4(source + lane * column_stride + k, column_stride, 1, out + k * kTileRows + lane,
                   kTileRows);
      for (int64_t lane = lanes; lane < width; ++lane)
        for (int64_t i = k; i < k + 4; ++i) out[i * kTileRows + lane] = source[lane * column_stride + i];
    }
    for (int64_t k = fours; k < depth; ++k)
      for (int64_t lane = 0; lane < width; ++lane)
        out[k * kTileRows + lane] = source[lane * column_stride + k];
  } else if (column_stride == 1 && width == kTileRows) {
    for (int64_t k = 0; k < depth; ++k)
      std::memcpy(out + k * kTileRows, source + k * k_stride, kTileRows * sizeof(float));
  } else {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t lane = 0; lane < width; ++lane)
        out[k * kTileRows + lane] = source[k * k_stride + lane * column_stride];
  }
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t lane = width; lane < kTileRows; ++lane) out[k * kTileRows + lane] = 0;
}

void fill_blocks(const TokenBlocks& task, int64_t first, int64_t last, float* x_blocks) {
  for (int64_t index = first; index < last; ++index) {
    const int64_t token = index * task.block, width = std::min(task.block, task.tokens - token);
    float* out = x_blocks + token * task.features;
    const float* in = task.x + token * task.token_stride;
    if (task.k_stride == 1) {  // read along a token, or along k where tokens are adjacent
      const int64_t fours = task.features / 4 * 4, tokens = width / 4 * 4, pairs = width / 2 * 2;
      for (int64_t k = 0; k < fours; k += 4) {
        for (int64_t t = 0; t < tokens; t += 4)
          transpose4(in + t * task.token_stride + k, task.token_stride, task.factor, out + k * width + t,
                     width);
        if (pairs > tokens)
          transpose2(in + tokens * task.token_stride + k, task.token_stride, task.factor,
                     out + k * width + tokens, width);
        for (int64_t t = pairs; t < width; ++t)
          for (int64_t i = k; i < k + 4; ++i)
            out[i * width + t] = task.factor * in[t * task.token_stride + i];
      }
      for (int64_t k = fours; k < task.features; ++k)
        for (int64_t t = 0; t < width; ++t) out[k * width + t] = task.factor * in[t * task.token_stride + k];
    } else {
      for (int64_t k = 0; k < task.features; ++k)
        for (int64_t t = 0; t < width; ++t)
          out[k * width + t] = task.factor * in[k * task.k_stride + t * task.token_stride];
    }
  }
}

int64_t CpuBackend::packed_bytes(const DenseView& weight) const {
  return tile_count(weight.out_features) * tile_bytes(weight) + kTileSlack;
}

int64_t CpuBackend::packed_bytes(const AffineView& weight) const {
  if (weight.by_columns)
    return weight.in_features / weight.group_size * columns_of(weight).group_bytes() + kTileSlack;
  return tile_count(weight.out_features) * tile_bytes(weight) + kTileSlack;
}

void CpuBackend::pack(const TensorView& source, const DenseView& weight, void* blob) {
  CHECK(source.shape.rank == 2 && source.shape[0] == weight.out_features &&
            source.shape[1] == weight.in_features,
        source.shape.text());
  CHECK(source.dtype == weight.dtype && source.contiguous());
  const int64_t row_bytes = weight.in_features * size_of(weight.dtype), bytes = tile_bytes(weight);
  pool_.parallel(tile_count(weight.out_features), [&](int, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t rows = std::min(kTileRows, weight.out_features - tile * kTileRows);
      const std::byte* in = source.as<std::byte>() + tile * kTileRows * row_bytes;
      std::byte* out = static_cast<std::byte*>(blob) + tile * bytes;
      if (weight.dtype == DType::f32) {
        pack_tile(in, row_bytes, rows, weight.in_features, reinterpret_cast<float*>(out));
      } else {
        pack_tile(in, row_bytes, rows, weight.in_features, reinterpret_cast<uint16_t*>(out));
      }
    }
  });
}

void CpuBackend::pack(const AffineMatrix& source, const AffineView& weight, void* blob) {
  CHECK(source.out_features == weight.out_features && source.in_features == weight.in_features &&
        source.bits == weight.bits && source.group_size == weight.group_size);
  if (weight.by_columns) {
    const ColumnShape shape = columns_of(weight);
    pool_.parallel(shape.units, [&](int, int64_t first, int64_t last) {
      pack_columns(source, shape, first, last, static_cast<uint8_t*>(blob));
    });
    return;
  }
  const int64_t bytes = tile_bytes(weight);
  pool_.parallel(tile_count(weight.out_features), [&](int, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile)
      pack_tile(source, tile, static_cast<uint8_t*>(blob) + tile * bytes);
  });
}

}  // namespace ballast
