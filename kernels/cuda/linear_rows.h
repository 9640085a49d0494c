// y = epilogue(x · Wᵀ) for row-major float weights, products and sums in f32. Work partition: a warp owns an output row and up
// to eight tokens; a lane takes every 32nd group of eight columns, so the order of a sum depends on in_features alone.
#pragma once

#include "kernels/cuda/linear_args.h"

namespace ballast::cuda {

/// Stored element types.
struct StoredF32 {
  static BALLAST_DEVICE float get(const void* data, int64_t i) { return static_cast<const float*>(data)[i]; }
};
struct StoredF16 {
  static BALLAST_DEVICE float get(const void* data, int64_t i) {
    return dev::half_to_float(static_cast<const uint16_t*>(data)[i]);
  }
};
struct StoredBF16 {
  static BALLAST_DEVICE float get(const void* data, int64_t i) {
    return dev::bfloat_to_float(static_cast<const uint16_t*>(data)[i]);
  }
};

template <class Stored>
struct LinearRows {
  static constexpr int kWarps = 4, kThreads = kWarps * dev::kWarp, kBlocks = 8;
  static constexpr int kTokens = 8, kColumns = 8;

  struct Args {
    const void* weights;  ///< [out_features][in_features]
    const float* x;
    int64_t x_stride;
    int in_features;
    Epilogue epilogue;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int row = dev::block() * kWarps + dev::warp(), first = dev::block_y() * kTokens, lane = dev::lane();
    if (row >= args.epilogue.out_features) return;
    const int left = args.epilogue.tokens - first, tokens = left < kTokens ? left : kTokens;
    const int64_t at = int64_t(row) * args.in_features;
    float sums[kTokens] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int column = kColumns * lane; column < args.in_features; column += kColumns * dev::kWarp) {
      const int end = args.in_features - column < kColumns ? args.in_features - column : kColumns;
      for (int i = 0; i < end; ++i) {
        const float weight = Stored::get(args.weights, at + column + i);
#pragma unroll
        for (int token = 0; token < kTokens; ++token)
          if (token < tokens)
            sums[token] = dev::fma(weight, args.x[(first + token) * args.x_stride + column + i], sums[token]);
      }
    }
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const float sum = dev::warp_sum(sums[token]);
      if (lane == 0) finish_output(args.epilogue, first + token, row, sum);
    }
  }
};

/// The epilogue alone, behind cuBLASLt. Work partition: a thread owns an output.
struct FinishRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float* sums;  ///< [tokens][out_features]
    Epilogue epilogue;
  };
  static BALLAST_DEVICE void run(const Args& args) {
    const int row = dev::block() * kThreads + dev::thread(), token = dev::block_y();
    if (row >= args.epilogue.out_features) return;
    finish_output(args.epilogue, token, row, args.sums[int64_t(token) * args.epilogue.out_features + row]);
  }
};

/// x rounded to 16 bits, dense, for cuBLASLt. Work partition: a thread owns two columns.
template <class Half>
struct RoundRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float* x;
    int64_t x_stride;
    int columns;  ///< even
    uint16_t* to;
  };
  static BALLAST_DEVICE void run(const Args& args) {
    const int column = 2 * (dev::block() * kThreads + dev::thread()), token = dev::block_y();
    if (column >= args.columns) return;
    const float* from = args.x + token * args.x_stride + column;
    *reinterpret_cast<uint32_t*>(args.to + int64_t(token) * args.columns + column) =
        dev::pack_halves<Half>(from[0], from[1]);
  }
};

}  // namespace ballast::cuda
