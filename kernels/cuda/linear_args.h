// What every linear kernel is told, and how a sum becomes an output.
#pragma once

#include "kernels/cuda/device.h"

namespace ballast::cuda {

/// ops/linear.h, behind the sum x · Wᵀ. Pointers to device memory, nullptr for what is absent.
struct Epilogue {
  const float* bias;           ///< [out_features]
  const float* position_bias;  ///< [positions][out_features]
  const int32_t* positions;    ///< [tokens]
  int64_t position_rows, position_stride;
  int activation;  ///< of ops/linear.h
  const float* residual;
  float* y;
  int64_t residual_stride, y_stride;
  int tokens, out_features;
};

BALLAST_DEVICE void finish_output(const Epilogue& epilogue, int token, int row, float sum) {
  if (token >= epilogue.tokens || row >= epilogue.out_features) return;
  if (epilogue.bias) sum += epilogue.bias[row];
  if (epilogue.position_bias) {
    const int64_t position = epilogue.positions[token];
    if (position < epilogue.position_rows)
      sum += epilogue.position_bias[position * epilogue.position_stride + row];
  }
  if (epilogue.activation == 1) sum = dev::max(sum, 0.0f);
  if (epilogue.activation == 2) sum = 0.5f * sum * (1.0f + dev::erf(sum * 0.70710678118654752f));
  if (epilogue.residual) sum += epilogue.residual[token * epilogue.residual_stride + row];
  epilogue.y[token * epilogue.y_stride + row] = sum;
}

/// x as the fragment kernels read it: rounded to 16 bits, padded with zeros to whole stages and to a multiple of eight
/// tokens, and its sums over every chunk, of which groups with a zero point need one each.
struct PreparedInput {
  uint16_t* halves;  ///< [tokens][stages · 256]
  /// [stages · chunks][kinds][tokens]: Σx; where codes keep an offset (fragments.h) also Σ offset · x for rows 0–7 and
  /// for rows 8–15 of a tile.
  float* sums;
  int tokens;  ///< padded
  int stages;
};

}  // namespace ballast::cuda
