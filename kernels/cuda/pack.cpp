// From canonical forms to blobs (weight_blob.h), on the host's threads.
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/weight_blob.h"

namespace ballast {

using namespace cuda;

namespace {

// Places of a unit's 16 x 64 codes, worked out once for each width.
struct UnitPlaces {
  struct Target {
    int word, shift;
  };
  std::vector<Target> targets;  ///< [16][64]; shift -1: pair 15 of 3 bits, `word` being its half
  std::vector<int> lanes;

  explicit UnitPlaces(int bits) {
    for (int row = 0; row < kTileRows; ++row)
      for (int column = 0; column < kUnitColumns; ++column) {
        const Corner at = corner_of(row, column);
        lanes.push_back(at.lane);
        if (bits == 3 && at.pair == 15) {
          targets.push_back({at.half, -1});
          continue;
        }
        const Place place = place_of(bits, at.pair);
        targets.push_back({word_index(bits, place.word, at.lane), place.shift + 16 * at.half});
      }
  }
};

template <class Matrix>
void pack_unit(const Matrix& source, const UnitPlaces& places, int64_t tile, int64_t unit, uint32_t* words) {
  const int64_t first_row = tile * kTileRows, first_column = unit * kUnitColumns;
  const int64_t rows = std::min<int64_t>(kTileRows, source.out_features - first_row);
  const int64_t columns = std::min<int64_t>(kUnitColumns, source.in_features - first_column);
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* codes = source.codes.data() + (first_row + row) * source.in_features + first_column;
    for (int64_t column = 0; column < columns; ++column) {
      const size_t index = size_t(row * kUnitColumns + column);
      const UnitPlaces::Target target = places.targets[index];
      const uint32_t code = codes[column];
      if (target.shift >= 0) {
        words[target.word] |= code << target.shift;
        continue;
      }
      for (int i = 0; i < 3; ++i)
        words[word_index(3, i, places.lanes[index])] |= (code >> i & 1) << (15 + 16 * target.word);
    }
  }
}

void pack_meta(const AffineMatrix& source, int64_t tile, AffineMeta* meta) {
  for (int64_t group = 0; group < source.groups(); ++group)
    for (int64_t row = 0; row < kTileRows && tile * kTileRows + row < source.out_features; ++row) {
      const auto at = size_t((tile * kTileRows + row) * source.groups() + group);
      meta[group].scales[row] = source.scales[at];
      const int zero = source.zero_points[at];
      meta[group].zeros[row] =
          uint8_t(source.bits == 8 ? zero : twice_zero(zero, source.bits, source.half_zeros));
    }
}

void pack_meta(const SparseOutlierMatrix& source, int64_t tile, RealMeta* meta) {
  for (int64_t group = 0; group < source.groups(); ++group)
    for (int64_t row = 0; row < kTileRows && tile * kTileRows + row < source.out_features; ++row) {
      meta[group].scales[row] = source.scale(tile * kTileRows + row, group);
      meta[group].zero_points[row] = source.zero(tile * kTileRows + row, group);
    }
}

/// All of a blob but what comes last. `fill_meta(tile, meta)` writes a tile's.
template <class Meta, class Matrix, class View, class FillMeta>
std::vector<uint32_t> packed_fragments(ThreadPool& pool, const Matrix& source, const View& weight,
                                       const FillMeta& fill_meta) {
  const FragmentBlob sizes(weight);
  const int64_t unit_words = dev::kWarp * words_of(bits_of(weight));
  std::vector<uint32_t> words(size_t(sizes.bytes / 4), 0);
  auto* const meta = reinterpret_cast<Meta*>(words.data() + sizes.meta_at / 4);
  const UnitPlaces places(bits_of(weight));
  pool.parallel(sizes.tiles, [&](int, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t unit = 0; unit < sizes.units; ++unit)
        pack_unit(source, places, tile, unit, words.data() + (tile * sizes.units + unit) * unit_words);
      fill_meta(tile, meta + tile * sizes.groups);
    }
  });
  return words;
}

void pack_tables(const ResidualBinaryMatrix& source, DType half, int64_t tile, TableMeta* meta) {
  for (int64_t block = 0; block < source.blocks(); ++block)
    for (int64_t row = 0; row < kTileRows && tile * kTileRows + row < source.out_features; ++row)
      for (int i = 0; i < 8; ++i) {
        const float value = source.value_of(tile * kTileRows + row, block, i >= 4, i % 4);
        meta[block].values[row][i] = half == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      }
}

void pack_outliers(const SparseOutlierMatrix& source, const FragmentBlob& sizes, uint32_t* begins,
                   uint32_t* outliers) {
  std::vector<std::vector<uint32_t>> lists(size_t(8 * sizes.tiles * sizes.stages));
  for (int64_t row = 0; row < source.out_features; ++row)
    for (uint32_t i = source.outlier_rows[size_t(row)]; i < source.outlier_rows[size_t(row) + 1]; ++i) {
      const int column = source.outlier_columns[i], within = int(row % kTileRows);
      const int64_t list = outlier_list(row / kTileRows, sizes.stages, column / kStageColumns, within);
      lists[size_t(list)].push_back(outlier_word(column % kStageColumns, within, source.outlier_values[i]));
    }
  uint32_t count = 0;
  for (size_t list = 0; list < lists.size(); ++list) {
    begins[list] = count;
    for (const uint32_t word : lists[list]) outliers[count++] = word;
  }
  begins[lists.size()] = count;
}

template <class Matrix>
std::vector<float> decoded_rows(ThreadPool& pool, const Matrix& source) {
  std::vector<float> rows(size_t(source.out_features * source.in_features));
  pool.parallel(source.out_features, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      source.decode_row(row, rows.data() + row * source.in_features);
  });
  return rows;
}

}  // namespace

int64_t CudaBackend::packed_bytes(const DenseView& weight) const {
  return weight.out_features * weight.in_features * size_of(weight.dtype);
}
int64_t CudaBackend::packed_bytes(const AffineView& weight) const {
  return form_of(weight) == WeightForm::fragments ? FragmentBlob(weight).bytes
                                                  : weight.out_features * weight.in_features * 4;
}
int64_t CudaBackend::packed_bytes(const SparseOutlierView& weight) const {
  return form_of(weight) == WeightForm::fragments ? FragmentBlob(weight).bytes
                                                  : weight.out_features * weight.in_features * 4;
}
int64_t CudaBackend::packed_bytes(const ResidualBinaryView& weight) const {
  return form_of(weight) == WeightForm::fragments ? FragmentBlob(weight).bytes
                                                  : weight.out_features * weight.in_features * 4;
}

void CudaBackend::pack(const TensorView& source, const DenseView& weight, void* blob) {
  CHECK(source.dtype == weight.dtype && source.device == Device::cpu && source.contiguous());
  machine_.copy_in(blob, source.data, packed_bytes(weight));
}

void CudaBackend::pack(const AffineMatrix& source, const AffineView& weight, void* blob) {
  if (form_of(weight) == WeightForm::rows) {
    machine_.copy_in(blob, decoded_rows(pool_, source).data(), packed_bytes(weight));
    return;
  }
  const auto fill = [&](int64_t tile, AffineMeta* meta) { pack_meta(source, tile, meta); };
  machine_.copy_in(blob, packed_fragments<AffineMeta>(pool_, source, weight, fill).data(),
                   packed_bytes(weight));
}

void CudaBackend::pack(const SparseOutlierMatrix& source, const SparseOutlierView& weight, void* blob) {
  if (form_of(weight) == WeightForm::rows) {
    machine_.copy_in(blob, decoded_rows(pool_, source).data(), packed_bytes(weight));
    return;
  }
  SparseOutlierMatrix bare = source;
  for (int64_t row = 0; row < source.out_features; ++row)
    for (uint32_t i = source.outlier_rows[size_t(row)]; i < source.outlier_rows[size_t(row) + 1]; ++i)
      bare.codes[size_t(row * source.in_features + source.outlier_columns[i])] = 0;
  std::vector<uint32_t> words = packed_fragments<RealMeta>(
      pool_, bare, weight, [&](int64_t tile, RealMeta* meta) { pack_meta(source, tile, meta); });
  const FragmentBlob sizes(weight);
  pack_outliers(source, sizes, words.data() + sizes.begins_at / 4, words.data() + sizes.outliers_at / 4);
  machine_.copy_in(blob, words.data(), sizes.bytes);
}
void CudaBackend::pack(const ResidualBinaryMatrix& source, const ResidualBinaryView& weight, void* blob) {
  if (form_of(weight) == WeightForm::rows) {
    machine_.copy_in(blob, decoded_rows(pool_, source).data(), packed_bytes(weight));
    return;
  }
  std::vector<uint32_t> words = packed_fragments<TableMeta>(
      pool_, source, weight, [&](int64_t tile, TableMeta* meta) { pack_tables(source, half_, tile, meta); });
  const FragmentBlob sizes(weight);
  for (int64_t column = 0; column < source.in_features; ++column)
    if (source.salient[size_t(column)])
      words[size_t(sizes.begins_at / 4 + column / 2)] |= 0xffffu << 16 * (column % 2);
  machine_.copy_in(blob, words.data(), sizes.bytes);
}

}  // namespace ballast
