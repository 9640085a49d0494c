// Weights in fragments -> 16-bit rows, for cuBLASLt. Work partition: a warp owns a unit of 16 rows by 64 columns and writes a
// row of it at a time, two columns a lane.
#pragma once

#include "kernels/cuda/group_meta.h"

namespace ballast::cuda {

template <int Bits, class Half>
struct DecodeFragments {
  static constexpr int kThreads = 32, kBlocks = 16;

  struct Args {
    const uint32_t* codes;   ///< [tiles][units][32 · Bits]
    const AffineMeta* meta;  ///< [tiles][groups]
    int units, groups;
    int out_features, in_features, group_size;  ///< in_features is even
    uint16_t* to;                               ///< [out_features][in_features]
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int tile = dev::block(), unit = dev::block_y(), lane = dev::lane();
    const uint32_t* words = args.codes + (int64_t(tile) * args.units + unit) * 32 * Bits;
    const int column = unit * kUnitColumns + 2 * lane;
    if (column >= args.in_features) return;
    const AffineMeta& meta = args.meta[int64_t(tile) * args.groups + column / args.group_size];
    for (int row = 0; row < kTileRows && tile * kTileRows + row < args.out_features; ++row) {
      const float scale = dev::half_to_float(meta.scales[row]),
                  zero = AffineMeta::zero_unit(Bits) * float(meta.zeros[row]);
      const float low = scale * (float(code_in_unit(words, Bits, row, 2 * lane)) - zero);
      const float high = scale * (float(code_in_unit(words, Bits, row, 2 * lane + 1)) - zero);
      uint16_t* const to = args.to + int64_t(tile * kTileRows + row) * args.in_features + column;
      *reinterpret_cast<uint32_t*>(to) = dev::pack_halves<Half>(low, high);
    }
  }
};

}  // namespace ballast::cuda
