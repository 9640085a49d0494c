// x in f32 -> PreparedInput. Work partition: a warp owns one token's stage of 256 columns, a lane eight of them.
#pragma once

#include "kernels/cuda/fragments.h"
#include "kernels/cuda/linear_args.h"

namespace ballast::cuda {

template <int Bits, class Half>
struct PrepareInput {
  static constexpr int kThreads = 128, kBlocks = 8;
  static constexpr int kKinds = Bits == 2 ? 3 : 1;

  struct Args {
    const float* x;
    int64_t x_stride;
    int tokens, in_features;
    int chunk;  ///< columns
    PreparedInput to;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int lane = dev::lane();
    const int item = dev::block() * (kThreads / dev::kWarp) + dev::warp();
    if (item >= args.to.tokens * args.to.stages) return;
    const int token = item % args.to.tokens, stage = item / args.to.tokens;
    const int first = stage * kStageColumns + 8 * lane;
    uint32_t pairs[4];
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
      const auto value = [&](int column) {
        return token < args.tokens && column < args.in_features ? args.x[token * args.x_stride + column]
                                                                : 0.0f;
      };
      pairs[i] = dev::pack_halves<Half>(value(first + 2 * i), value(first + 2 * i + 1));
      const dev::Floats2 rounded = dev::unpack_halves<Half>(pairs[i]);
      sum += rounded.x + rounded.y;
    }
    const int64_t width = int64_t(args.to.stages) * kStageColumns;
    *reinterpret_cast<dev::Words4*>(args.to.halves + token * width + first) = {pairs[0], pairs[1], pairs[2],
                                                                               pairs[3]};

    const auto store = [&](int kind, float value) {
      for (int lanes = 1; lanes < args.chunk / 8; lanes *= 2) value += dev::shuffle_xor(value, lanes);
      const int chunk = first / args.chunk;
      if (first % args.chunk == 0)
        args.to.sums[(int64_t(chunk) * kKinds + kind) * args.to.tokens + token] = value;
    };
    store(0, sum);
    if constexpr (Bits == 2) {
      // A lane's eight columns share their offset.
      const Corner at = corner_of(0, first % kUnitColumns);
      const float low = offset_of<Bits, Half>(at.pair), high = offset_of<Bits, Half>(at.pair + 1);
      store(1, low * sum);
      store(2, high * sum);
    }
  }
};

}  // namespace ballast::cuda
