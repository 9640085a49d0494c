#include "engine/nn/pick_rows.h"

#include "engine/nn/tape.h"

namespace ballast::nn {
namespace {

OutputView on_device(const ForwardContext& context, const void* host, DType dtype, Shape shape) {
  const OutputView out = context.workspace.tensor(dtype, shape);
  context.backend.copy_to_device(out.as<void>(), host, out.bytes());
  return out;
}

// dx[rows[i]] += dy[i], as the product of a matrix of zeros and ones with dy.
void scatter(const ForwardContext& context, const std::vector<int32_t>& rows, const OutputView& dy,
             const OutputView& dx) {
  const Workspace::Scope scope(context.workspace);
  const int64_t picked = dy.shape[0];
  std::vector<float> ones(size_t(dx.shape[0] * picked));
  for (int64_t i = 0; i < picked; ++i) ones[size_t(rows[size_t(i)] * picked + i)] = 1;
  context.backend.run(RankUpdate{.e = on_device(context, ones.data(), DType::f32, {dx.shape[0], picked}),
                                 .u = dy,
                                 .w = dx,
                                 .add = true});
}

}  // namespace

void pick_rows(const ForwardContext& context, const TensorView& x, const std::vector<int32_t>& rows,
               const OutputView& y) {
  context.backend.run(
      GatherRows{.x = x, .rows = on_device(context, rows.data(), DType::i32, {int64_t(rows.size())}), .y = y});
  if (!context.tape) return;
  context.tape->record([x, rows, y](const ForwardContext& back) {
    const OutputView dy = back.tape->gradient(back, y), dx = back.tape->gradient(back, x);
    scatter(back, rows, dy, dx);
  });
}

}  // namespace ballast::nn
