// From canonical forms to blobs (weight_blob.h), on the host's threads.
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/group_meta.h"
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

void pack_unit(const AffineMatrix& source, const UnitPlaces& places, int64_t tile, int64_t unit,
               uint32_t* words) {
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
      meta[group].zero_points[row] = source.zero_points[at];
    }
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
  if (form_of(weight) == WeightForm::fragments) return FragmentBlob(weight, AffineMeta::kBytes).bytes;
  return weight.out_features * weight.in_features * 4;
}
int64_t CudaBackend::packed_bytes(const SparseOutlierView& weight) const {
  return weight.out_features * weight.in_features * 4;
}
int64_t CudaBackend::packed_bytes(const ResidualBinaryView& weight) const {
  return weight.out_features * weight.in_features * 4;
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
  const FragmentBlob sizes(weight, AffineMeta::kBytes);
  const int64_t unit_words = dev::kWarp * words_of(weight.bits);
  std::vector<uint32_t> words(size_t(sizes.bytes / 4), 0);
  auto* const meta = reinterpret_cast<AffineMeta*>(words.data() + sizes.code_bytes / 4);
  const UnitPlaces places(weight.bits);
  pool_.parallel(sizes.tiles, [&](int, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t unit = 0; unit < sizes.units; ++unit)
        pack_unit(source, places, tile, unit, words.data() + (tile * sizes.units + unit) * unit_words);
      pack_meta(source, tile, meta + tile * sizes.groups);
    }
  });
  machine_.copy_in(blob, words.data(), sizes.bytes);
}

void CudaBackend::pack(const SparseOutlierMatrix& source, const SparseOutlierView& weight, void* blob) {
  machine_.copy_in(blob, decoded_rows(pool_, source).data(), packed_bytes(weight));
}
void CudaBackend::pack(const ResidualBinaryMatrix& source, const ResidualBinaryView& weight, void* blob) {
  machine_.copy_in(blob, decoded_rows(pool_, source).data(), packed_bytes(weight));
}

}  // namespace ballast
