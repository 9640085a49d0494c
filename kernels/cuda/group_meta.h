// Scales and zero points beside fragments.
#pragma once

#include "kernels/cuda/fragments.h"

namespace ballast::cuda {

/// A scale and a zero point for each of a tile's 16 rows and one group, as device memory holds them.
struct AffineMeta {
  uint16_t scales[kTileRows];  ///< binary16
  uint8_t zero_points[kTileRows];

  static constexpr int kBytes = 48, kUsualChunk = 128;
  struct Row {
    float scale, zero;
  };
  static BALLAST_DEVICE Row row(dev::Shared<uint8_t> s_meta, int row) {
    return {dev::half_to_float(s_meta.as<uint16_t>().get(row)), float(s_meta.get(32 + row))};
  }
};
static_assert(sizeof(AffineMeta) == AffineMeta::kBytes);

}  // namespace ballast::cuda
