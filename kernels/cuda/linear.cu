#include "kernels/ops/linear.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_ops.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/weight_blob.h"

namespace ballast {

using namespace cuda;

namespace {

// From so many tokens on, cuBLASLt multiplies 16-bit weights; below, they are read once for every eight tokens.
constexpr int64_t kProductTokens = 16;
// A grid has at most so many blocks in its second dimension.
constexpr int64_t kMostBlocksY = 65535;

}  // namespace

void CudaBackend::multiply_halves(DType type, const void* weights, const TensorView& x,
                                  const Epilogue& behind) {
  forget_input();  // its memory is used here, too
  const int64_t tokens = x.shape[0], columns = x.shape[1];
  auto* const halves = input_.of<uint16_t>(tokens * columns);
  auto* const sums = product_.of<float>(tokens * behind.out_features);
  CHECK(columns % 8 == 0 && tokens <= kMostBlocksY);
  const auto round = [&]<class Half>(Half) {
    using Kernel = RoundRows<Half>;
    launch<Kernel>(machine_,
                   {.blocks = (columns / 2 + Kernel::kThreads - 1) / Kernel::kThreads, .blocks_y = tokens},
                   {.x = x.as<float>(), .x_stride = x.strides[0], .columns = int(columns), .to = halves});
  };
  if (type == DType::f16) {
    round(dev::F16());
  } else {
    round(dev::BF16());
  }
  machine_.multiply({.type = type,
                     .a = halves,
                     .b = weights,
                     .out = sums,
                     .rows = tokens,
                     .columns = behind.out_features,
                     .inner = columns});
  launch<FinishRows>(
      machine_,
      {.blocks = (behind.out_features + FinishRows::kThreads - 1) / FinishRows::kThreads, .blocks_y = tokens},
      {.sums = sums, .epilogue = behind});
}

template <class Encoding>
void CudaBackend::run_rows(DType type, const Linear<Encoding>& op) {
  forget_input_under(op.y);
  const int64_t tokens = op.x.shape[0];
  if (tokens > kMostBlocksY) {
    for (int64_t first = 0; first < tokens; first += kMostBlocksY)
      run_rows(type, part_of(op, first, std::min(kMostBlocksY, tokens - first)));
    return;
  }
  if (!deterministic_ && type != DType::f32 && tokens >= kProductTokens && op.weight.in_features % 8 == 0)
    return multiply_halves(type, op.weight.data.data, op.x, epilogue(op));
  const auto multiply = [&]<class Stored>(Stored) {
    using Kernel = LinearRows<Stored>;
    launch<Kernel>(machine_,
                   {.blocks = (op.weight.out_features + Kernel::kWarps - 1) / Kernel::kWarps,
                    .blocks_y = (tokens + Kernel::kTokens - 1) / Kernel::kTokens},
                   {.weights = op.weight.data.data,
                    .x = op.x.template as<float>(),
                    .x_stride = op.x.strides[0],
                    .in_features = int(op.weight.in_features),
                    .epilogue = epilogue(op)});
  };
  if (type == DType::f32) return multiply(StoredF32());
  if (type == DType::f16) return multiply(StoredF16());
  multiply(StoredBF16());
}

void CudaBackend::run(const Linear<DenseView>& any_op) {
  on_device(any_op, [this](const auto& op) { run_rows(op.weight.dtype, op); });
}

void CudaBackend::run(const Linear<AffineView>& any_op) {
  on_device(any_op, [this](const auto& op) {
    if (form_of(op.weight) == WeightForm::rows) return run_rows(DType::f32, op);
    switch (op.weight.bits) {
      case 2:
        return run_fragments<2>(op);
      case 3:
        return run_fragments<3>(op);
      case 4:
        return run_fragments<4>(op);
      default:
        return run_fragments<8>(op);
    }
  });
}

void CudaBackend::run(const Linear<SparseOutlierView>& any_op) {
  on_device(any_op, [this](const auto& op) {
    if (form_of(op.weight) == WeightForm::rows) return run_rows(DType::f32, op);
    run_outliers(op);
  });
}

void CudaBackend::run(const Linear<ResidualBinaryView>& any_op) {
  on_device(any_op, [this](const auto& op) {
    if (form_of(op.weight) == WeightForm::rows) return run_rows(DType::f32, op);
    run_tables(op);
  });
}

}  // namespace ballast
