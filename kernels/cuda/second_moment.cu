#include "kernels/ops/second_moment.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/multiply_tiles.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

constexpr int kTokensAtOnce = 1024;  // the contract's longest f32 sum

}  // namespace

// Sums that are kept in host memory are made on the device for this call's tokens and added there.
template <class Out>
void CudaBackend::add_moment(const SecondMoment& op, Out* out) {
  const int64_t rows = op.a.shape[1], columns = op.b.shape[1];
  if (op.a.shape[0] == 0 || rows == 0 || columns == 0) return;
  const Staged a(machine_, stages_[0], op.a);
  const bool same = op.a.data == op.b.data && op.a.strides[0] == op.b.strides[0];
  const Staged b(machine_, stages_[same ? 0 : 1], op.b, !same);
  const bool there = op.out_device == Device::cuda;
  Out* const sums = there ? out : stages_[2].of<Out>(rows * columns);
  multiply_tiles<MultiplyTiles<float, Out, false, false>>(machine_, {.a = a.as<float>(),
                                                                     .b = b.as<float>(),
                                                                     .out = sums,
                                                                     .a_stride = a.stride(),
                                                                     .b_stride = b.stride(),
                                                                     .out_stride = columns,
                                                                     .rows = int(rows),
                                                                     .columns = int(columns),
                                                                     .inner = int(op.a.shape[0]),
                                                                     .terms_at_once = kTokensAtOnce,
                                                                     .sign = 1,
                                                                     .add = there,
                                                                     .upper_a = false,
                                                                     .lowest = rows});
  if (there) return;
  std::vector<Out> here(static_cast<size_t>(rows * columns));
  machine_.copy_out(here.data(), sums, rows * columns * int64_t(sizeof(Out)));
  pool_.parallel(rows, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin * columns; i < end * columns; ++i) out[i] += here[size_t(i)];
  });
}

void CudaBackend::run(const SecondMoment& op) {
  op.check();
  forget_input();
  if (op.out) return add_moment(op, op.out);
  add_moment(op, op.out_f32);
}

}  // namespace ballast
