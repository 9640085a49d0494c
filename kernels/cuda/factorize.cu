#include "kernels/ops/factorize.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/multiply_tiles.h"
#include "kernels/cuda/staged.h"

namespace ballast {

using namespace cuda;

namespace {

constexpr int kSquare = 64;
constexpr int kPitch = kSquare + 1;

// One square of the diagonal: H = R·Rᵀ from the last column to the first, and R⁻¹. Work partition: one block; a step's updates
// are dealt to all threads, and each of the first 64 owns a column of the inverse.
struct FactorSquare {
  static constexpr int kThreads = 256, kBlocks = 1;
  static constexpr int64_t kSharedBytes = 2 * kSquare * kPitch * 8;
  struct Args {
    double* h;
    int64_t stride;
    int size;
    double* inverse;  ///< [kSquare, kSquare], zeros below the diagonal
    int* failed;
  };

  static BALLAST_DEVICE void run(const Args& args) {
    dev::SharedArena arena;
    const auto s_h = arena.take<double>(kSquare * kPitch), s_inverse = arena.take<double>(kSquare * kPitch);
    const int thread = dev::thread(), size = args.size;
    for (int at = thread; at < size * size; at += kThreads) {
      const int i = at / size, j = at % size;
      if (i <= j) s_h.set(i * kPitch + j, args.h[i * args.stride + j]);
    }
    dev::sync_block();
    for (int j = size - 1; j >= 0; --j) {
      const double pivot = s_h.get(j * kPitch + j);
      if (!(pivot > 0) || pivot > 1.7976931348623157e308) {  // the same for all threads
        if (thread == 0) *args.failed = 1;
        return;
      }
      const double root = dev::sqrt(pivot);
      dev::sync_block();
      if (thread < j) s_h.set(thread * kPitch + j, s_h.get(thread * kPitch + j) / root);
      if (thread == j) s_h.set(j * kPitch + j, root);
      dev::sync_block();
      for (int at = thread; at < j * j; at += kThreads) {
        const int i = at / j, k = at % j;
        if (i > k) continue;
        s_h.set(i * kPitch + k,
                dev::fma(-s_h.get(i * kPitch + j), s_h.get(k * kPitch + j), s_h.get(i * kPitch + k)));
      }
      dev::sync_block();
    }
    if (thread < kSquare) invert_column(args, s_h, s_inverse, thread);
    for (int at = thread; at < size * size; at += kThreads) {
      const int i = at / size, j = at % size;
      if (i <= j) args.h[i * args.stride + j] = s_h.get(i * kPitch + j);
    }
  }

 private:
  static BALLAST_DEVICE void invert_column(const Args& args, dev::Shared<double> s_h,
                                           dev::Shared<double> s_inverse, int column) {
    for (int i = kSquare - 1; i >= 0; --i) {
      double value = 0;
      if (column < args.size && i <= column) {
        double sum = i == column ? 1 : 0;
        for (int k = i + 1; k <= column; ++k)
          sum = dev::fma(-s_h.get(i * kPitch + k), s_inverse.get(k * kPitch + column), sum);
        value = sum / s_h.get(i * kPitch + i);
      }
      s_inverse.set(i * kPitch + column, value);
      args.inverse[i * kSquare + column] = value;
    }
  }
};

// R⁻¹ of a square to its place. Work partition: a block of 64 threads a row.
struct PlaceSquare {
  static constexpr int kThreads = kSquare, kBlocks = 8;
  struct Args {
    const double* inverse;
    double* h;
    int64_t stride;
    int size;
  };
  static BALLAST_DEVICE void run(const Args& args) {
    const int i = dev::block(), j = dev::thread();
    if (i <= j && j < args.size) args.h[i * args.stride + j] = args.inverse[i * kSquare + j];
  }
};

using TimesTransposed = MultiplyTiles<double, double, true, true>;
using Times = MultiplyTiles<double, double, true, false>;

}  // namespace

// In squares of 64 on the diagonal, as the CPU does it: left-looking from the last columns to the first, then the inverse
// from the first to the last. A product takes 64 columns, so its blocks read their own rows only, and may lie over A.
bool CudaBackend::run(const FactorizeInverse& op) {
  op.check();
  const int n = int(op.size);
  const int64_t elements = op.size * op.size;
  double* const h = stages_[0].of<double>(elements);
  double* const inverses = stages_[1].of<double>((n + kSquare - 1) / kSquare * kSquare * kSquare);
  double* const panel = stages_[2].of<double>(int64_t(n) * kSquare);
  int* const failed = stages_[3].of<int>(1);
  machine_.copy_in(h, op.h, elements * 8);
  machine_.clear(failed, 4);
  const auto at = [&](int row, int column) { return h + int64_t(row) * n + column; };
  const TimesTransposed::Args whole{.a_stride = n,
                                    .b_stride = n,
                                    .out_stride = n,
                                    .terms_at_once = n,
                                    .sign = 1,
                                    .add = false,
                                    .upper_a = false,
                                    .lowest = n};
  for (int first = (n - 1) / kSquare * kSquare; first >= 0; first -= kSquare) {
    const int size = std::min(kSquare, n - first), last = first + size;
    double* const inverse = inverses + int64_t(first) * kSquare;
    TimesTransposed::Args args = whole;
    args.columns = size;
    args.out = at(0, first);
    if (last < n) {
      args.a = at(0, last), args.b = at(first, last);
      args.rows = last, args.inner = n - last;
      args.sign = -1, args.add = true, args.lowest = first;
      multiply_tiles<TimesTransposed>(machine_, args);
    }
    launch<FactorSquare>(
        machine_, {.shared_bytes = FactorSquare::kSharedBytes},
        {.h = at(first, first), .stride = n, .size = size, .inverse = inverse, .failed = failed});
    args.a = at(0, first), args.b = inverse, args.b_stride = kSquare;
    args.rows = first, args.inner = size;
    args.sign = 1, args.add = false, args.lowest = n;
    multiply_tiles<TimesTransposed>(machine_, args);
  }
  for (int first = 0; first < n; first += kSquare) {
    const int size = std::min(kSquare, n - first);
    double* const inverse = inverses + int64_t(first) * kSquare;
    Times::Args args{.a = at(0, first),
                     .b = inverse,
                     .out = panel,
                     .a_stride = n,
                     .b_stride = kSquare,
                     .out_stride = kSquare,
                     .rows = first,
                     .columns = size,
                     .inner = size,
                     .terms_at_once = n,
                     .sign = 1,
                     .add = false,
                     .upper_a = false,
                     .lowest = n};
    multiply_tiles<Times>(machine_, args);
    args.a = h, args.b = panel, args.out = at(0, first), args.out_stride = n;
    args.inner = first, args.sign = -1, args.upper_a = true;
    multiply_tiles<Times>(machine_, args);
    launch<PlaceSquare>(machine_, {.blocks = size},
                        {.inverse = inverse, .h = at(first, first), .stride = n, .size = size});
  }
  int bad = 0;
  machine_.copy_out(&bad, failed, 4);
  if (bad) return false;
  machine_.copy_out(op.h, h, elements * 8);
  return true;
}

}  // namespace ballast
