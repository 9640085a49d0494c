// Matrices as UpdateTask::b wants them: strips of `lanes` columns, [strip][depth][lanes].
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

}  // namespace ballast
