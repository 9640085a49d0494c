#include "kernels/ops/column_sums.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

// Work partition: a thread owns a column and goes through the tokens in order, so the bits are the CPU's.
struct SumColumns {
  static constexpr int kThreads = 64, kBlocks = 8;
  struct Args {
    const float* x;
    const int32_t* positions;
    double *sums, *position_sums;
    int32_t* zeros;
    int64_t x_stride, position_count;
    int tokens, width;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    const int column = dev::block() * kThreads + dev::thread();
    if (column >= args.width) return;
    double sum = args.sums[column];
    int zeros = 0;
    for (int t = 0; t < args.tokens; ++t) {
      const float value = args.x[t * args.x_stride + column];
      sum += double(value);
      zeros += int(value == 0);
      if (args.position_count > 0 && args.positions[t] < args.position_count)
        args.position_sums[int64_t(args.positions[t]) * args.width + column] += double(value);
    }
    args.sums[column] = sum;
    args.zeros[column] = zeros;
  }
};

}  // namespace

void CudaBackend::run(const ColumnSums& op) {
  op.check();
  forget_input();
  const int64_t tokens = op.x.shape[0], width = op.x.shape[1];
  if (tokens == 0 || width == 0) return;
  const Staged x(machine_, stages_[0], op.x);
  const int64_t sum_bytes = 8 * width, position_bytes = sum_bytes * op.position_count;
  auto* const sums = stages_[1].of<double>(width);
  auto* const position_sums =
      op.position_count > 0 ? stages_[2].of<double>(op.position_count * width) : nullptr;
  auto* const zeros = stages_[3].of<int32_t>(width);
  machine_.copy_in(sums, op.sums, sum_bytes);
  if (position_sums) machine_.copy_in(position_sums, op.position_sums, position_bytes);
  launch<SumColumns>(machine_, {.blocks = (width + SumColumns::kThreads - 1) / SumColumns::kThreads},
                     {.x = x.as<float>(),
                      .positions = position_sums ? numbers(op.positions) : nullptr,
                      .sums = sums,
                      .position_sums = position_sums,
                      .zeros = zeros,
                      .x_stride = x.stride(),
                      .position_count = op.position_count,
                      .tokens = int(tokens),
                      .width = int(width)});
  std::vector<int32_t> counts(static_cast<size_t>(width));
  machine_.copy_out(counts.data(), zeros, 4 * width);
  machine_.copy_out(op.sums, sums, sum_bytes);
  if (position_sums) machine_.copy_out(op.position_sums, position_sums, position_bytes);
  for (const int32_t count : counts) *op.zeros += count;
}

}  // namespace ballast
