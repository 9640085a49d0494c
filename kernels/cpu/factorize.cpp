#include "kernels/ops/factorize.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace ballast {
namespace {

// Rows dealt to the threads in turn: all rows of a triangle are of different lengths.
constexpr int64_t kRowsAtOnce = 24;

/// The matrix of one call, cut into squares of kSquare on its diagonal.
class Factorization {
 public:
  Factorization(const KernelTable& kernels, ThreadPool& pool, double* h, int64_t size)
      : kernels_(kernels), pool_(pool), h_(h), n_(size) {}

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
  /// strips_ = value(k, j), k < depth, j < columns, as update_f64 reads it.
  template <class Value>
  void fill_strips(int64_t depth, int64_t columns, Value&& value);
  /// task.out −= task.a · strips_ for rows [0, rows), out and a beginning at row 0 of h.
  void update(DoubleUpdate task, int64_t rows);
  template <class Body>
  void deal_rows(int64_t rows, Body&& body);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  double* h_;
  int64_t n_;
  std::vector<double> inverses_;  ///< R[J, J]⁻¹ of every square, [kSquare][kSquare]
  std::vector<double> strips_;
};

template <class Value>
void Factorization::fill_strips(int64_t depth, int64_t columns, Value&& value) {
  const int64_t lanes = kernels_.double_strip, strips = (columns + lanes - 1) / lanes;
  strips_.resize(size_t(strips * depth * lanes));
  pool_.parallel(strips, [&](int, int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      double* out = strips_.data() + strip * depth * lanes;
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t lane = 0; lane < lanes; ++lane)
          *out++ = strip * lanes + lane < columns ? value(k, strip * lanes + lane) : 0.0;
    }
  });
}

template <class Body>
void Factorization::deal_rows(int64_t rows, Body&& body) {
  const int64_t threads = pool_.threads();
  pool_.parallel(threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share)
      for (int64_t row = share * kRowsAtOnce; row < rows; row += threads * kRowsAtOnce)
        body(row, std::min(kRowsAtOnce, rows - row));
  });
}

void Factorization::update(DoubleUpdate task, int64_t rows) {
  task.b = strips_.data();
  deal_rows(rows, [&](int64_t row, int64_t count) {
    DoubleUpdate mine = task;
    mine.a += row * n_;
    mine.out += row * n_;
    mine.rows = count;
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
    fill_strips(right, size, [&](int64_t k, int64_t j) { return h_[(first + j) * n_ + last + k]; });
    // The rows of the square go to its copy: below the diagonal h is not ours.
    DoubleUpdate task{.a = h_ + last, .a_stride = n_, .b = strips_.data(), .rank = right, .columns = size};
    deal_rows(first, [&](int64_t row, int64_t count) {
      DoubleUpdate mine = task;
      mine.a += row * n_, mine.rows = count;
      mine.out = h_ + row * n_ + first, mine.out_stride = n_;
      mine.diagonal = -n_;
      kernels_.update_f64(mine);
    });
    deal_rows(size, [&](int64_t row, int64_t count) {
      DoubleUpdate mine = task;
      mine.a += (first + row) * n_, mine.rows = count;
      mine.out = square.data() + row * kSquare, mine.out_stride = kSquare;
      mine.diagonal = -n_;
      kernels_.update_f64(mine);
    });
  }
  if (!kernels_.factor_square(square.data(), size)) return false;
  kernels_.invert_square(square.data(), size, inverse(first));
  for (int64_t i = 0; i < size; ++i)
    std::copy_n(square.data() + i * kSquare + i, size - i, h_ + (first + i) * n_ + first + i);
  const double* factor = inverse(first);
  fill_strips(size, size, [&](int64_t k, int64_t j) { return -factor[j * kSquare + k]; });
  update({.a = h_ + first,
          .a_stride = n_,
          .rank = size,
          .columns = size,
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
  DoubleUpdate task{.a = h_ + first,
                    .a_stride = n_,
                    .rank = size,
                    .columns = size,
                    .fresh = true,
                    .diagonal = -n_,
                    .out = h_ + first,
                    .out_stride = n_};
  fill_strips(size, size, [&](int64_t k, int64_t j) { return -factor[k * kSquare + j]; });
  update(task, first);
  fill_strips(first, size, [&](int64_t k, int64_t j) { return h_[k * n_ + first + j]; });
  task.a = h_, task.rank = first, task.diagonal = 0;
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
