// What a weight's blob holds in device memory, worked out from the facts in its view.
//
//   affine             fragments.h: codes of all tiles, then AffineMeta [tiles][groups]
//   sparse outliers    the same with RealMeta, then where lists of outliers begin and the outliers (group_meta.h)
//   residual binary    the same with TableMeta for each block of columns, then the salient columns (linear_fragments.h)
//   everything else    rows: the decoded matrix [out_features][in_features], row-major, in its stored type (f32 for what
//                      was decoded). So are the three above where groups are not a multiple of 16 columns, or blocks of 64.
#pragma once

#include "kernels/cuda/group_meta.h"
#include "kernels/encodings/views.h"

namespace ballast::cuda {

enum class WeightForm : uint8_t { fragments, rows };

/// Columns that share what comes with codes.
inline int64_t group_columns(const AffineView& weight) {
  return weight.group_size;
}
inline int64_t group_columns(const SparseOutlierView& weight) {
  return weight.group_size;
}
inline int64_t group_columns(const ResidualBinaryView& weight) {
  return weight.block_size;
}
inline int bits_of(const AffineView& weight) {
  return weight.bits;
}
inline int bits_of(const SparseOutlierView& weight) {
  return weight.bits;
}
inline int bits_of(const ResidualBinaryView&) {
  return 2;
}

/// Tables of small blocks would crowd the codes out of shared memory.
inline int least_chunk(const ResidualBinaryView&) {
  return 64;
}
template <class View>
int least_chunk(const View&) {
  return 16;
}
template <class View>
WeightForm form_of(const View& weight) {
  return chunk_columns(group_columns(weight)) >= least_chunk(weight) ? WeightForm::fragments
                                                                     : WeightForm::rows;
}

/// Sizes of a blob of fragments.
struct FragmentBlob {
  int64_t tiles, units, stages, groups;
  int64_t meta_at;      ///< byte
  int64_t begins_at;    ///< byte, of outlier lists or of salient columns; the end without either
  int64_t outliers_at;  ///< byte
  int64_t bytes;

  explicit FragmentBlob(const AffineView& weight)
      : FragmentBlob(weight.bits, weight.out_features, weight.in_features, weight.group_size,
                     AffineMeta::kBytes) {}
  explicit FragmentBlob(const SparseOutlierView& weight)
      : FragmentBlob(weight.bits, weight.out_features, weight.in_features, weight.group_size,
                     RealMeta::kBytes) {
    outliers_at = begins_at + 4 * (8 * tiles * stages + 1);
    bytes = outliers_at + 4 * weight.outliers;
  }
  explicit FragmentBlob(const ResidualBinaryView& weight)
      : FragmentBlob(2, weight.out_features, weight.in_features, weight.block_size, TableMeta::kBytes) {
    bytes = begins_at + stages * kStageColumns * 2;
  }

 private:
  FragmentBlob(int bits, int64_t out_features, int64_t in_features, int64_t group_size, int64_t meta_bytes)
      : tiles(tiles_of(out_features)),
        units(units_of(in_features)),
        stages(stages_of(in_features)),
        groups((in_features + group_size - 1) / group_size),
        meta_at(tiles * units * dev::kWarp * words_of(bits) * 4),
        begins_at(meta_at + tiles * groups * meta_bytes),
        outliers_at(begins_at),
        bytes(begins_at) {}
};

}  // namespace ballast::cuda
