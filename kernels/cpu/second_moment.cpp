#include "kernels/ops/second_moment.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/strips.h"

namespace ballast {
namespace {

constexpr int64_t kTokensAtOnce = 1024;  // the contract's longest f32 sum
constexpr int64_t kColumnsAtOnce = 256;  // of f32 sums before they are added in f64: they stay in L2
constexpr int64_t kRowsAtOnce = kUpdateRows;

// part [rows, width] of the f32 sums, rows kColumnsAtOnce apart, to out.
template <class T>
void add_to(const float* part, int64_t rows, int64_t width, T* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; ++j) out[i * out_stride + j] += T(part[i * kColumnsAtOnce + j]);
}

}  // namespace

// Work partition: a thread owns rows of the result, all columns (or those up to the diagonal) a piece at a time.
void CpuBackend::run(const SecondMoment& op) {
  op.check();
  CHECK(op.out_device == Device::cpu);
  const int64_t rows = op.a.shape[1], columns = op.b.shape[1];
  const int64_t lanes = kernels_.float_strip, strips = (columns + lanes - 1) / lanes;
  const bool symmetric = op.out && op.a.data == op.b.data && rows == columns;
  for (int64_t start = 0; start < op.a.shape[0]; start += kTokensAtOnce) {
    const int64_t tokens = std::min(kTokensAtOnce, op.a.shape[0] - start);
    float* const transposed = blocks_.floats(rows * tokens);
    float* const packed = tiles_.floats(strips * tokens * lanes);
    pool_.parallel((rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int, int64_t begin, int64_t end) {
      const int64_t first = begin * kRowsAtOnce, last = std::min(rows, end * kRowsAtOnce);
      transpose(op.a.row(start) + first, op.a.strides[0], tokens, last - first, transposed + first * tokens,
                tokens);
    });
    pool_.parallel(strips, [&](int, int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; ++strip)
        fill_strip(op.b.row(start), op.b.strides[0], tokens, strip * lanes,
                   std::min(lanes, columns - strip * lanes), lanes, packed + strip * tokens * lanes);
    });
    pool_.deal((rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int thread, int64_t part) {
      const int64_t row = part * kRowsAtOnce;
      UpdateTask<float> task{.a_stride = tokens, .rank = tokens, .add = true, .fresh = true};
      task.diagonal = -rows, task.out_stride = kColumnsAtOnce;
      task.scratch = thread_scratch(thread, kUpdateScratch<float> + kRowsAtOnce * kColumnsAtOnce);
      task.out = task.scratch + kUpdateScratch<float>;
      task.rows = std::min(kRowsAtOnce, rows - row);
      task.a = transposed + row * tokens;
      const int64_t stop = symmetric ? row + task.rows : columns;
      for (int64_t column = 0; column < stop; column += kColumnsAtOnce) {
        task.columns = std::min(kColumnsAtOnce, stop - column);
        task.b = packed + column * tokens;
        kernels_.update_f32(task);
        const int64_t at = row * columns + column;
        if (op.out) {
          add_to(task.out, task.rows, task.columns, op.out + at, columns);
        } else {
          add_to(task.out, task.rows, task.columns, op.out_f32 + at, columns);
        }
      }
    });
  }
  if (symmetric) mirror_lower(op.out, rows);
}

// out[i][j] = out[j][i] for i < j, in squares: reading down a whole column would miss the cache every time.
void CpuBackend::mirror_lower(double* out, int64_t size) {
  constexpr int64_t kSide = 32;
  pool_.parallel((size + kSide - 1) / kSide, [&](int, int64_t first, int64_t last) {
    for (int64_t i0 = first * kSide; i0 < std::min(size, last * kSide); i0 += kSide)
      for (int64_t j0 = i0; j0 < size; j0 += kSide)
        for (int64_t i = i0; i < std::min(size, i0 + kSide); ++i)
          for (int64_t j = std::max(i + 1, j0); j < std::min(size, j0 + kSide); ++j)
            out[i * size + j] = out[j * size + i];
  });
}

}  // namespace ballast
