#include "kernels/ops/half_rows.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a block owns a row, a thread every 256th value. The bits are the CPU's.
struct StoreRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float* x;
    uint16_t* halves;
    float* scales;
    int64_t x_stride, half_stride;
    int width;
  };
  static constexpr int64_t kSharedBytes = kThreads / dev::kWarp * 4;

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_largest = arena.take<float>(kThreads / dev::kWarp);
    const float* x = args.x + dev::block() * args.x_stride;
    uint16_t* halves = args.halves + dev::block() * args.half_stride;
    // A NaN counts as infinity: either keeps the scale at 1.
    float largest = 0;
    for (int i = dev::thread(); i < args.width; i += kThreads) {
      const float magnitude = dev::float_of(dev::bits_of(x[i]) & 0x7FFFFFFFu);
      largest = dev::max(largest, magnitude == magnitude ? magnitude : dev::float_of(0x7F800000u));
    }
    largest = dev::block_max(largest, s_largest);
    const uint32_t bits = dev::bits_of(largest);
    // Of the largest as binary16 will round it, so that a row that is stored again keeps its scale.
    int exponent = int((bits + 0x1000u) >> 23) - 127 - 14;
    if (bits >= 0x7F800000u) exponent = 0;
    if (exponent < -113) exponent = -113;  // so that the reciprocal is a normal number
    const float reciprocal = dev::float_of(uint32_t(127 - exponent) << 23);
    if (dev::thread() == 0) args.scales[dev::block()] = dev::float_of(uint32_t(127 + exponent) << 23);
    for (int i = dev::thread(); i < args.width; i += kThreads)
      halves[i] = dev::float_to_half(x[i] * reciprocal);
  }
};

struct LoadRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const uint16_t* halves;
    const float* scales;
    float* x;
    int64_t half_stride, x_stride;
    int width;
  };
  static BALLAST_DEVICE void run(const Args& args) {
    const uint16_t* halves = args.halves + dev::block() * args.half_stride;
    float* x = args.x + dev::block() * args.x_stride;
    const float scale = args.scales[dev::block()];
    for (int i = dev::thread(); i < args.width; i += kThreads) x[i] = dev::half_to_float(halves[i]) * scale;
  }
};

}  // namespace

void CudaBackend::run(const StoreHalfRows& op) {
  op.check();
  forget_input();
  if (op.x.shape.elements() == 0) return;
  const Staged x(machine_, stages_[0], op.x), halves(machine_, stages_[1], op.halves, false),
      scales(machine_, stages_[2], op.scales, false);
  launch<StoreRows>(machine_, {.blocks = op.x.shape[0], .shared_bytes = StoreRows::kSharedBytes},
                    {.x = x.as<float>(),
                     .halves = halves.as<uint16_t>(),
                     .scales = scales.as<float>(),
                     .x_stride = x.stride(),
                     .half_stride = halves.stride(),
                     .width = int(op.x.shape[1])});
  halves.put_back();
  scales.put_back();
}

void CudaBackend::run(const LoadHalfRows& op) {
  op.check();
  forget_input();
  if (op.x.shape.elements() == 0) return;
  const Staged halves(machine_, stages_[0], op.halves), scales(machine_, stages_[1], op.scales),
      x(machine_, stages_[2], op.x, false);
  launch<LoadRows>(machine_, {.blocks = op.x.shape[0]},
                   {.halves = halves.as<uint16_t>(),
                    .scales = scales.as<float>(),
                    .x = x.as<float>(),
                    .half_stride = halves.stride(),
                    .x_stride = x.stride(),
                    .width = int(op.x.shape[1])});
  x.put_back();
}

}  // namespace ballast
