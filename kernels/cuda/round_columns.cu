#include "kernels/ops/round_columns.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a warp owns a row, lane l its columns l, l + 32, …, in registers; the column in turn is sent to all. The
// steps and their rounding are the CPU's, so codes and errors are the same bits.
struct WalkRows {
  static constexpr int kThreads = 256, kBlocks = 2;
  static constexpr int kRows = kThreads / dev::kWarp, kSlots = int(RoundColumns::kMaxWidth) / dev::kWarp;
  struct Args {
    float* w;
    const float* u;
    const float* scales;
    const float* zeros;
    const int32_t* groups;
    uint8_t* codes;
    int64_t w_stride, u_stride, scale_stride, zero_stride, code_stride;
    int rows, width;
    float max_code;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int row = dev::block() * kRows + dev::warp(), lane = dev::lane();
    if (row >= args.rows) return;
    float* const w = args.w + row * args.w_stride;
    uint8_t* const codes = args.codes + row * args.code_stride;
    float mine[kSlots];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int column = slot * dev::kWarp + lane;
      mine[slot] = column < args.width ? w[column] : 0.0f;
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      for (int from = 0; from < dev::kWarp; ++from) {
        const int i = slot * dev::kWarp + from;
        if (i >= args.width) break;
        const float value = dev::shuffle(mine[slot], from);
        const int64_t group = args.groups[i];
        const float scale = args.scales[group * args.scale_stride + row];
        const float zero = args.zeros[group * args.zero_stride + row];
        const float whole_zero = dev::round_to_even(zero - 0.25f), half = zero - whole_zero;
        const float whole = dev::min(dev::max(dev::round_to_even(value / scale + half), -whole_zero),
                                     args.max_code - whole_zero);
        const float* u = args.u + i * args.u_stride;
        const float error = (value - dev::multiply(scale, whole - half)) / u[i];
        if (lane == from) {
          mine[slot] = error;
          codes[i] = uint8_t(whole + whole_zero);
        }
#pragma unroll
        for (int later = slot; later < kSlots; ++later) {
          const int column = later * dev::kWarp + lane;
          if (column > i && column < args.width) mine[later] = dev::fma(-error, u[column], mine[later]);
        }
      }
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int column = slot * dev::kWarp + lane;
      if (column < args.width) w[column] = mine[slot];
    }
  }
};

}  // namespace

void CudaBackend::run(const RoundColumns& op) {
  op.check();
  forget_input();
  const int64_t rows = op.w.shape[0], width = op.w.shape[1];
  if (rows == 0 || width == 0) return;
  const Staged w(machine_, stages_[0], op.w), u(machine_, stages_[1], op.u),
      scales(machine_, stages_[2], op.scales), zeros(machine_, stages_[3], op.zeros),
      codes(machine_, stages_[4], op.codes, false);
  launch<WalkRows>(machine_, {.blocks = (rows + WalkRows::kRows - 1) / WalkRows::kRows},
                   {.w = w.as<float>(),
                    .u = u.as<float>(),
                    .scales = scales.as<float>(),
                    .zeros = zeros.as<float>(),
                    .groups = numbers(op.groups),
                    .codes = codes.as<uint8_t>(),
                    .w_stride = w.stride(),
                    .u_stride = u.stride(),
                    .scale_stride = scales.stride(),
                    .zero_stride = zeros.stride(),
                    .code_stride = codes.stride(),
                    .rows = int(rows),
                    .width = int(width),
                    .max_code = float(op.max_code)});
  w.put_back();
  codes.put_back();
}

}  // namespace ballast
