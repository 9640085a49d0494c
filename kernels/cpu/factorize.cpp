#include "kernels/ops/factorize.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strips.h"

namespace ballast {
namespace {

constexpr int64_t kRowsAtOnce = kUpdateRows;
constexpr int64_t kThreadScratch = kUpdateScratch<double> + kRowsAtOnce * kSquare;

class AlignedDoubles {
 public:
  explicit AlignedDoubles(int64_t count) : data_(reinterpret_cast<double*>(buffer_.floats(2 * count))) {}
  double* data() const { return data_; }

 private:
  ScratchBuffer buffer_;
  double* data_;
};

/// The matrix of one call, cut into squares of kSquare on its diagonal.
class Factorization {
 public:
  Factorization(const KernelTable& kernels, ThreadPool& pool, double* h, int64_t size)
      : kernels_(kernels),
        pool_(pool),
        h_(h),
        n_(size),
        strips_((n_ + kSquare) * kSquare),
        scratch_(pool.threads() * kThreadScratch) {}

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
  /// Rows [row, end) of task.a times strips_ from `out`, which begins at row `row`.
  void update_rows(UpdateTask<double> task, int64_t row, int64_t end, double* out, int64_t out_stride,
                   double* scratch) const;
  /// The same for rows [0, rows) of h's columns from `first` on.
  void update(const UpdateTask<double>& task, int64_t rows, int64_t first);
  template <class Body>
  void deal_rows(int64_t rows, Body&& body);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  double* h_;
  int64_t n_;
  std::vector<double> inverses_;  ///< R[J, J]⁻¹ of every square, [kSquare][kSquare]
  AlignedDoubles strips_;
  AlignedDoubles scratch_;  ///< for every thread: of update_f64, and some rows of a result
};

void Factorization::fill_strips(const double* source, int64_t stride, int64_t depth, int64_t columns,
                                bool transposed) {
  const int64_t lanes = kernels_.double_strip, strips = (columns + lanes - 1) / lanes;
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
  pool_.deal((rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int thread, int64_t part) {
    const int64_t row = part * kRowsAtOnce;
    body(row, std::min(kRowsAtOnce, rows - row), scratch_.data() + thread * kThreadScratch);
  });
}

// By way of a copy: rows of a large matrix lie a power of two apart and would push each other out of the cache.
void Factorization::update_rows(UpdateTask<double> task, int64_t row, int64_t end, double* out,
                                int64_t out_stride, double* scratch) const {
  task.a += row * n_, task.a_stride = n_;
  task.b = strips_.data();
  task.rows = end - row;
  task.diagonal += row;
  task.scratch = scratch;
  task.out = scratch + kUpdateScratch<double>, task.out_stride = kSquare;
  if (!task.fresh)
    for (int64_t i = 0; i < task.rows; ++i)
      std::copy_n(out + i * out_stride, task.columns, task.out + i * kSquare);
  kernels_.update_f64(task);
  for (int64_t i = 0; i < task.rows; ++i)
    std::copy_n(task.out + i * kSquare, task.columns, out + i * out_stride);
}

void Factorization::update(const UpdateTask<double>& task, int64_t rows, int64_t first) {
  deal_rows(rows, [&](int64_t row, int64_t count, double* scratch) {
    update_rows(task, row, row + count, h_ + row * n_ + first, n_, scratch);
  });
}

// Left-looking: the columns first lose the products of all columns right of them. With R[J, J]⁻¹ the rest of
// the columns is a product, too: R[<J, J] = H[<J, J]·R[J, J]⁻ᵀ.
bool Factorization::factor_columns(int64_t first) {
  const int64_t size = width(first), last = first + size, right = n_ - last;
  std::vector<double> square(kSquare * kSquare);
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(h_ + (first + i) * n_ + first + i, size - i, square.data() + i * kSquare + i);
  UpdateTask<double> task{.a = h_ + last, .rank = right, .columns = size, .diagonal = -n_};
  if (right > 0) {
    fill_strips(h_ + first * n_ + last, n_, right, size, true);
    // The rows of the square go to its copy: below the diagonal h is not ours.
    deal_rows(last, [&](int64_t row, int64_t count, double* scratch) {
      const int64_t end = row + count, middle = std::clamp(first, row, end);
      update_rows(task, row, middle, h_ + row * n_ + first, n_, scratch);
      update_rows(task, middle, end, square.data() + (middle - first) * kSquare, kSquare, scratch);
    });
  }
  if (!kernels_.factor_square(square.data(), size)) return false;
  kernels_.invert_square(square.data(), size, inverse(first));
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(square.data() + i * kSquare + i, size - i, h_ + (first + i) * n_ + first + i);
  fill_strips(inverse(first), kSquare, size, size, true);
  task.a = h_ + first, task.rank = size, task.add = task.fresh = true;
  update(task, first, first);
  return true;
}

// U[:, J] = −U[:, <J]·R[<J, J]·R[J, J]⁻¹, and R[J, J]⁻¹ itself on the diagonal.
void Factorization::invert_columns(int64_t first) {
  const int64_t size = width(first);
  const double* factor = inverse(first);
  fill_strips(factor, kSquare, size, size, false);
  update({.a = h_ + first, .rank = size, .columns = size, .add = true, .fresh = true, .diagonal = -n_}, first,
         first);
  fill_strips(h_ + first, n_, first, size, false);
  update({.a = h_, .rank = first, .columns = size, .fresh = true, .diagonal = 0}, first, first);
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(factor + i * kSquare + i, size - i, h_ + (first + i) * n_ + first + i);
}

}  // namespace

bool CpuBackend::run(const FactorizeInverse& op) {
  op.check();
  return Factorization(kernels_, pool_, op.h, op.size).run();
}

}  // namespace ballast
