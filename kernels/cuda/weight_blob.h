// What a weight's blob holds in device memory, worked out from the facts in its view.
//
//   affine             fragments.h: codes of all tiles, then AffineMeta [tiles][groups]
//   sparse outliers    the same with RealMeta, then where lists of outliers begin and the outliers (group_meta.h)
//   everything else    rows: the decoded matrix [out_features][in_features], row-major, in its stored type (f32 for what
//                      was decoded). So are the two above where groups are not a multiple of 16 columns.
#pragma once

#include "kernels/cuda/group_meta.h"
#include "kernels/encodings/views.h"

namespace ballast::cuda {

enum class WeightForm : uint8_t { fragments, rows };

/// Of AffineView or SparseOutlierView.
template <class View>
WeightForm form_of(const View& weight) {
  return chunk_columns(weight.group_size) > 0 ? WeightForm::fragments : WeightForm::rows;
}

/// Sizes of a blob of fragments.
struct FragmentBlob {
  int64_t tiles, units, stages, groups;
  int64_t meta_at;      ///< byte
  int64_t begins_at;    ///< byte, of outlier lists; the end without outliers
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

 private:
  FragmentBlob(int bits, int64_t out_features, int64_t in_features, int64_t group_size, int64_t meta_bytes)
      : tiles(tiles_of(out_features)),
        units(units_of(in_features)),
        stages(stages_of(in_features)),
        groups(in_features / group_size),
        meta_at(tiles * units * dev::kWarp * words_of(bits) * 4),
        begins_at(meta_at + tiles * groups * meta_bytes),
        outliers_at(begins_at),
        bytes(begins_at) {}
};

}  // namespace ballast::cuda
