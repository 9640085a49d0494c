// Matrices as updates want them: strips of `lanes` columns, [strip][depth][lanes] (UpdateTask::b); transposes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ballast {

/// One strip of columns [column, column + width) of a row-major matrix; lanes beyond width are 0.
template <class T>
void fill_strip(const T* source, int64_t stride, int64_t depth, int64_t column, int64_t width, int64_t lanes,
                T* out) {
  for (int64_t k = 0; k < depth; ++k, out += lanes) {
    std::memcpy(out, source + k * stride + column, size_t(width) * sizeof(T));
    std::fill(out + width, out + lanes, T(0));
  }
}

/// The same of the transposed matrix: out[k][lane] = source[column + lane][k].
template <class T>
void fill_strip_transposed(const T* source, int64_t stride, int64_t depth, int64_t column, int64_t width,
                           int64_t lanes, T* out) {
  constexpr int64_t kTerms = 32;  // of which the strip stays in L1
  for (int64_t first = 0; first < depth; first += kTerms) {
    const int64_t last = std::min(depth, first + kTerms);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const T* in = source + (column + lane) * stride;
      for (int64_t k = first; k < last; ++k) out[k * lanes + lane] = lane < width ? in[k] : T(0);
    }
  }
}

/// out[j][i] = source[i][j], in squares that fit L1.
template <class T>
void transpose(const T* source, int64_t stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
  constexpr int64_t kSide = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kSide)
    for (int64_t j0 = 0; j0 < columns; j0 += kSide)
      for (int64_t j = j0; j < std::min(columns, j0 + kSide); ++j)
        for (int64_t i = i0; i < std::min(rows, i0 + kSide); ++i)
          out[j * out_stride + i] = source[i * stride + j];
}

}  // namespace ballast
