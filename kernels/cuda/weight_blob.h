// What a weight's blob holds in device memory, worked out from the facts in its view.
//
//   affine             fragments.h: codes of all tiles, then AffineMeta [tiles][groups]
//   everything else    rows: the decoded matrix [out_features][in_features], row-major, in its stored type (f32 for what
//                      was decoded). So are affine weights whose groups are not a multiple of 16 columns.
#pragma once

#include "kernels/cuda/fragments.h"
#include "kernels/encodings/views.h"

namespace ballast::cuda {

enum class WeightForm : uint8_t { fragments, rows };

inline WeightForm form_of(const AffineView& weight) {
  return chunk_columns(weight.group_size) > 0 ? WeightForm::fragments : WeightForm::rows;
}

/// Sizes of a blob of fragments.
struct FragmentBlob {
  int64_t tiles, units, groups, code_bytes, bytes;

  FragmentBlob(const AffineView& weight, int64_t meta_bytes)
      : tiles(tiles_of(weight.out_features)),
        units(units_of(weight.in_features)),
        groups(weight.in_features / weight.group_size),
        code_bytes(tiles * units * dev::kWarp * words_of(weight.bits) * 4),
        bytes(code_bytes + tiles * groups * meta_bytes) {}
};

}  // namespace ballast::cuda
