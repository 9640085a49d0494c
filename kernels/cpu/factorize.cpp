#include "kernels/ops/factorize.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strips.h"

namespace ballast {
namespace {

// Rows dealt to the threads in turn: all rows of a triangle are of different lengths.
constexpr int64_t kRowsAtOnce = kUpdateRows<double>;

/// The matrix of one call, cut into squares of kSquare on its diagonal.
class Factorization {
 public:
  Factorization(const KernelTable& kernels, ThreadPool& pool, double* h, int64_t size)
      : kernels_(kernels),
        pool_(pool),
        h_(h),
        n_(size),
        scratch_(size_t(pool.threads() * kUpdateRows<double> * kTermBlock)) {}

  bool run() {
    inverses_.resize(size_t((n_ + kSquare - 1) / kSquare * kSquare * kSquare));
    for (int64_t first = (n_ - 1) / kSquare * kSquare; first >= 0; first -= kSquare)
      if (!factor_columns(first)) return false;
    for (int64_t first = 0; first < n_; first += kSquare) invert_columns(first);
    return true;
  }

 private:
  int64_t width(int64_t first) const { return std::min(kSquare, n_ - first); }
  double* inverse(int64_t first) { return inverses_.data() + first * kSquare; }
  bool factor_columns(int64_t first);
  void invert_columns(int64_t first);
  /// strips_ from `source` [depth, columns], or from its transpose.
  void fill_strips(const double* source, int64_t stride, int64_t depth, int64_t columns, bool transposed);
  /// task.out −= task.a · strips_ for rows [0, rows), out and a beginning at row 0 of h.
  void update(UpdateTask<double> task, int64_t rows);
  template <class Body>
  void deal_rows(int64_t rows, Body&& body);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  double* h_;
  int64_t n_;
  std::vector<double> inverses_;  ///< R[J, J]⁻¹ of every square, [kSquare][kSquare]
  std::vector<double> strips_;
  std::vector<double> scratch_;  ///< of update_f64, for every thread
};

void Factorization::fill_strips(const double* source, int64_t stride, int64_t depth, int64_t columns,
                                bool transposed) {
  const int64_t lanes = kernels_.double_strip, strips = (columns + lanes - 1) / lanes;
  strips_.resize(size_t(strips * depth * lanes));
  pool_.parallel(strips, [&](int, int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t column = strip * lanes, width = std::min(lanes, columns - column);
      double* out = strips_.data() + strip * depth * lanes;
      if (transposed) {
        fill_strip_transposed(source, stride, depth, column, width, lanes, out);
      } else {
        fill_strip(source, stride, depth, column, width, lanes, out);
      }
    }
  });
}

template <class Body>
void Factorization::deal_rows(int64_t rows, Body&& body) {
  const int64_t threads = pool_.threads();
  pool_.parallel(threads, [&](int thread, int64_t begin, int64_t end) {
    double* scratch = scratch_.data() + thread * kUpdateRows<double> * kTermBlock;
    for (int64_t share = begin; share < end; ++share)
      for (int64_t row = share * kRowsAtOnce; row < rows; row += threads * kRowsAtOnce)
        body(row, std::min(kRowsAtOnce, rows - row), scratch);
  });
}

void Factorization::update(UpdateTask<double> task, int64_t rows) {
  task.b = strips_.data();
  deal_rows(rows, [&](int64_t row, int64_t count, double* scratch) {
    UpdateTask<double> mine = task;
    mine.a += row * n_;
    mine.out += row * n_;
    mine.rows = count, mine.scratch = scratch;
    mine.diagonal += row;
    kernels_.update_f64(mine);
  });
}

// Left-looking: the columns first lose the products of all columns right of them. With R[J, J]⁻¹ the rest of
// the columns is a product, too: R[<J, J] = H[<J, J]·R[J, J]⁻ᵀ.
bool Factorization::factor_columns(int64_t first) {
  const int64_t size = width(first), last = first + size, right = n_ - last;
  std::vector<double> square(kSquare * kSquare);
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(h_ + (first + i) * n_ + first + i, size - i, square.data() + i * kSquare + i);
  if (right > 0) {
    fill_strips(h_ + first * n_ + last, n_, right, size, true);
    UpdateTask<double> task{
        .a = h_ + last, .a_stride = n_, .b = strips_.data(), .rank = right, .columns = size, .diagonal = -n_};
    const auto update_rows = [&](int64_t row, int64_t end, double* out, int64_t stride, double* scratch) {
      if (row >= end) return;
      UpdateTask<double> mine = task;
      mine.a += row * n_, mine.rows = end - row;
      mine.out = out, mine.out_stride = stride, mine.scratch = scratch;
      kernels_.update_f64(mine);
    };
    // The rows of the square go to its copy: below the diagonal h is not ours.
    deal_rows(last, [&](int64_t row, int64_t count, double* scratch) {
      const int64_t end = row + count, middle = std::clamp(first, row, end);
      update_rows(row, middle, h_ + row * n_ + first, n_, scratch);
      update_rows(middle, end, square.data() + (middle - first) * kSquare, kSquare, scratch);
    });
  }
  if (!kernels_.factor_square(square.data(), size)) return false;
  kernels_.invert_square(square.data(), size, inverse(first));
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(square.data() + i * kSquare + i, size - i, h_ + (first + i) * n_ + first + i);
  fill_strips(inverse(first), kSquare, size, size, true);
  update({.a = h_ + first,
          .a_stride = n_,
          .rank = size,
          .columns = size,
          .add = true,
          .fresh = true,
          .diagonal = -n_,
          .out = h_ + first,
          .out_stride = n_},
         first);
  return true;
}

// U[:, J] = −U[:, <J]·R[<J, J]·R[J, J]⁻¹, and R[J, J]⁻¹ itself on the diagonal.
void Factorization::invert_columns(int64_t first) {
  const int64_t size = width(first);
  const double* factor = inverse(first);
  UpdateTask<double> task{.a = h_ + first,
                          .a_stride = n_,
                          .rank = size,
                          .columns = size,
                          .add = true,
                          .fresh = true,
                          .diagonal = -n_,
                          .out = h_ + first,
                          .out_stride = n_};
  fill_strips(factor, kSquare, size, size, false);
  update(task, first);
  fill_strips(h_ + first, n_, first, size, false);
  task.a = h_, task.rank = first, task.add = false, task.diagonal = 0;
  update(task, first);
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(factor + i * kSquare + i, size - i, h_ + (first + i) * n_ + first + i);
}

}  // namespace

bool CpuBackend::run(const FactorizeInverse& op) {
  op.check();
  return Factorization(kernels_, pool_, op.h, op.size).run();
}

}  // namespace ballast
