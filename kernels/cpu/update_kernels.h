// Dense updates out −= a·b in f32 and f64, one instruction set (see simd.h and UpdateTask).
//
// Work partition: the caller gives a thread some rows. kUpdateRows of them are gathered in L2, then each strip
// of b passes through L1 once while all blocks of rows use it; a block of the result stays in registers.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

// Bytes of a register, and rows of the result that stay in registers.
#if defined(BALLAST_AVX512)
inline constexpr int kRegisterBytes = 64, kBlockRows = 12;
#elif defined(BALLAST_AVX2)
inline constexpr int kRegisterBytes = 32, kBlockRows = 6;
#else
inline constexpr int kRegisterBytes = 16, kBlockRows = 4;
#endif
inline constexpr int kBlockVectors = 2;
template <class T>
inline constexpr int kVectorLanes = kRegisterBytes / int(sizeof(T));
template <class T>
inline constexpr int kStrip = kBlockVectors* kVectorLanes<T>;

typedef double D __attribute__((vector_size(kRegisterBytes), aligned(8), may_alias));
typedef float S __attribute__((vector_size(kRegisterBytes), aligned(4), may_alias));
template <class T>
struct Vector {
  typedef S type;
};
template <>
struct Vector<double> {
  typedef D type;
};

// a·b + c
static inline D plus_product(double a, D b, D c) {
#if defined(BALLAST_AVX512)
  return _mm512_fmadd_pd(_mm512_set1_pd(a), b, c);
#elif defined(BALLAST_AVX2)
  return _mm256_fmadd_pd(_mm256_set1_pd(a), b, c);
#else
  for (int i = 0; i < kVectorLanes<double>; ++i) c[i] = __builtin_fma(a, b[i], c[i]);
  return c;
#endif
}
static inline S plus_product(float a, S b, S c) {
#if defined(BALLAST_AVX512)
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
#elif defined(BALLAST_AVX2)
  return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
#else
  for (int i = 0; i < kVectorLanes<float>; ++i) c[i] = __builtin_fmaf(a, b[i], c[i]);
  return c;
#endif
}

// kBlockRows x kStrip elements of out, over `count` terms. a: [kBlockRows][kTermBlock], b: [count][kStrip].
template <class T>
static void update_block(const T* a, const T* b, int64_t count, bool fresh, T* out, int64_t out_stride) {
  using V = typename Vector<T>::type;
  constexpr int kLanesOfV = kVectorLanes<T>;
  V sums[kBlockRows][kBlockVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kBlockRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kBlockVectors; ++v)
      sums[i][v] = fresh ? V{} : *reinterpret_cast<const V*>(out + i * out_stride + v * kLanesOfV);
  for (int64_t r = 0; r < count; ++r) {
    V row[kBlockVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kBlockVectors; ++v)
      row[v] = *reinterpret_cast<const V*>(b + r * kStrip<T> + v * kLanesOfV);
#pragma GCC unroll 12
    for (int i = 0; i < kBlockRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kBlockVectors; ++v)
        sums[i][v] = plus_product(a[i * kTermBlock<T> + r], row[v], sums[i][v]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kBlockRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kBlockVectors; ++v)
      *reinterpret_cast<V*>(out + i * out_stride + v * kLanesOfV) = sums[i][v];
}

// The same where only `rows` x `columns` elements of out are there.
template <class T>
static void update_edge(const T* a, const T* b, int64_t count, bool fresh, int64_t rows, int64_t columns,
                        T* out, int64_t out_stride) {
  T whole[kBlockRows * kStrip<T>] = {};
  if (!fresh)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) whole[i * kStrip<T> + j] = out[i * out_stride + j];
  update_block<T>(a, b, count, fresh, whole, kStrip<T>);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i * out_stride + j] = whole[i * kStrip<T> + j];
}

// Terms [from, from + count) of a, signed, rows side by side in memory: rows of a large matrix lie a power of
// two apart and would push each other out of the cache.
template <class T>
static void gather_terms(const UpdateTask<T>& task, int64_t first, int64_t rows, int64_t from,
                         int64_t count) {
  const T sign = task.add ? T(1) : T(-1);
  const int64_t padded = (rows + kBlockRows - 1) / kBlockRows * kBlockRows;
  for (int64_t i = 0; i < padded; ++i) {
    T* out = task.scratch + i * kTermBlock<T>;
    int64_t zeros = i < rows ? first + i + task.diagonal - from : count;
    zeros = zeros < 0 ? 0 : zeros < count ? zeros : count;
    for (int64_t r = 0; r < zeros; ++r) out[r] = 0;
    if (i >= rows) continue;
    const T* in = task.a + (first + i) * task.a_stride + from;
    for (int64_t r = zeros; r < count; ++r) out[r] = sign * in[r];
  }
}

// Towards L2: what gather_terms wants next.
template <class T>
static inline void fetch_terms(const UpdateTask<T>& task, int64_t row, int64_t from) {
  const T* terms = task.a + row * task.a_stride + from;
  const int64_t count = task.rank - from < kTermBlock<T> ? task.rank - from : kTermBlock<T>;
  for (int64_t r = 0; r < count; r += 64 / int64_t(sizeof(T))) __builtin_prefetch(terms + r, 0, 2);
}

template <class T>
static void update_strip(const UpdateTask<T>& task, int64_t first, int64_t rows, int64_t column, int64_t from,
                         int64_t count, bool fresh) {
  const int64_t columns = task.columns - column < kStrip<T> ? task.columns - column : kStrip<T>;
  const T* b = task.b + column * task.rank + from * kStrip<T>;
  T* out = task.out + first * task.out_stride + column;
  for (int64_t i = 0; i < rows; i += kBlockRows) {
    // Where a is zero for a whole block there is nothing to do.
    int64_t skip = first + i + task.diagonal - from;
    skip = skip < 0 ? 0 : skip < count ? skip : count;
    const T* a = task.scratch + i * kTermBlock<T> + skip;
    T* here = out + i * task.out_stride;
    const int64_t left = rows - i < kBlockRows ? rows - i : kBlockRows;
    for (int64_t ahead = i + kBlockRows; ahead < i + 2 * kBlockRows && ahead < rows; ++ahead)
      __builtin_prefetch(out + ahead * task.out_stride, 1);
    if (left == kBlockRows && columns == kStrip<T>) {
      update_block<T>(a, b + skip * kStrip<T>, count - skip, fresh, here, task.out_stride);
    } else {
      update_edge<T>(a, b + skip * kStrip<T>, count - skip, fresh, left, columns, here, task.out_stride);
    }
  }
}

template <class T>
static void update(const UpdateTask<T>& task) {
  static_assert(kUpdateRows % kBlockRows == 0);
  for (int64_t first = 0; first < task.rows; first += kUpdateRows) {
    const int64_t rows = task.rows - first < kUpdateRows ? task.rows - first : kUpdateRows;
    bool fresh = task.fresh;
    int64_t from = first + task.diagonal < 0 ? 0 : first + task.diagonal;
    for (; from < task.rank || fresh; from += kTermBlock<T>) {
      int64_t count = task.rank - from < kTermBlock<T> ? task.rank - from : kTermBlock<T>;
      count = count < 0 ? 0 : count;
      gather_terms<T>(task, first, rows, from, count);
      // Rows whose next terms are on their way.
      int64_t fetched = from + kTermBlock<T> < task.rank ? 0 : rows;
      for (int64_t column = 0; column < task.columns; column += kStrip<T>) {
        for (; fetched < rows && fetched * task.columns < rows * (column + kStrip<T>); ++fetched)
          fetch_terms<T>(task, first + fetched, from + kTermBlock<T>);
        update_strip<T>(task, first, rows, column, from, count, fresh);
      }
      fresh = false;
    }
  }
}

static void update_f32(const UpdateTask<float>& task) {
  update<float>(task);
}
static void update_f64(const UpdateTask<double>& task) {
  update<double>(task);
}

}  // namespace ballast::BALLAST_ISA
