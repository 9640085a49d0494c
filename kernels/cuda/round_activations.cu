#include "kernels/ops/round_activations.h"

#include <cmath>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

using Kind = ActivationGrid::Kind;

// Mantissas of √2, 2^(1/4) and 2^(3/4), see encodings/activation.cpp.
constexpr uint32_t kRootTwo = 0x3504F3, kFourthRootTwo = 0x1837F0, kFourthRootEight = 0x5744FC;

// Work partition: a block owns a token, a thread every 256th value. The steps are those of ActivationGrid::round, and so are
// the bits.
struct RoundRows {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const float* x;
    float* y;
    int64_t x_stride, y_stride;
    int width;
    Kind kind;
    float fine, inverse_fine, coarse, inverse_coarse;
    float low, high, half;
    int levels, per_octave;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const float* x = args.x + dev::block() * args.x_stride;
    float* y = args.y + dev::block() * args.y_stride;
    for (int i = dev::thread(); i < args.width; i += kThreads) y[i] = rounded(args, x[i]);
  }

 private:
  // A negative zero stays one, which is not said of max and min.
  static BALLAST_DEVICE float clamped(float code, float low, float high) {
    return code < low ? low : code > high ? high : code;
  }
  static BALLAST_DEVICE float rounded(const Args& args, float x) {
    if (x != x) return x;
    const float in_fine = dev::round_to_even(x * args.inverse_fine);
    const float in_coarse = dev::round_to_even(x * args.inverse_coarse);
    if (args.kind == Kind::affine) return args.fine * clamped(in_fine, args.low, args.high);
    if (args.kind == Kind::twin_sign)
      return x < 0 ? args.fine * clamped(in_fine, -args.half, 0)
                   : args.coarse * clamped(in_coarse, 0, args.half - 1);
    if (args.kind == Kind::twin_size)
      return in_fine < args.half ? args.fine * clamped(in_fine, 0, args.half - 1)
                                 : args.coarse * clamped(in_coarse, 0, args.half - 1);
    return logarithm(args, x * args.inverse_fine);
  }
  static BALLAST_DEVICE float logarithm(const Args& args, float whole) {
    const uint32_t bits = dev::bits_of(whole > 0 ? dev::min(whole, 1.0f) : 0.0f), mantissa = bits & 0x7FFFFFu;
    const int exponent = int(bits >> 23) - 127;
    const int code = args.per_octave == 1
                         ? -exponent - int(mantissa > kRootTwo)
                         : -2 * exponent - int(mantissa > kFourthRootTwo) - int(mantissa > kFourthRootEight);
    if (code >= args.levels - 1 || exponent < -126) return 0;
    const int halvings = args.per_octave == 1 ? code : (code + 1) / 2;
    // In two factors, as 2^-127 is no normal number.
    const float power = dev::float_of(uint32_t(127 - halvings / 2) << 23) *
                        dev::float_of(uint32_t(127 - (halvings - halvings / 2)) << 23);
    return args.fine * (args.per_octave == 2 && code % 2 != 0 ? power * 1.41421356237f : power);
  }
};

}  // namespace

void CudaBackend::run(const RoundActivations& op) {
  op.check();
  forget_input();
  if (op.x.shape.elements() == 0) return;
  const ActivationGrid& grid = op.grid;
  const Staged x(machine_, stages_[0], op.x), y(machine_, stages_[1], op.y, false);
  const float coarse = std::ldexp(grid.step, grid.shift);
  launch<RoundRows>(machine_, {.blocks = op.x.shape[0]},
                    {.x = x.as<float>(),
                     .y = y.as<float>(),
                     .x_stride = x.stride(),
                     .y_stride = y.stride(),
                     .width = int(op.x.shape[1]),
                     .kind = grid.kind,
                     .fine = grid.step,
                     .inverse_fine = 1.0f / grid.step,
                     .coarse = coarse,
                     .inverse_coarse = 1.0f / coarse,
                     .low = float(-grid.zero_point),
                     .high = float(grid.levels() - 1 - grid.zero_point),
                     .half = float(grid.levels() / 2),
                     .levels = grid.levels(),
                     .per_octave = grid.per_octave});
  y.put_back();
}

}  // namespace ballast
