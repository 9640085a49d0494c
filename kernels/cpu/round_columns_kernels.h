// GPTQ's column walk over one block, one instruction set (see simd.h and ops/round_columns.h).
//
// Work partition: a thread owns tiles of 16 rows. Lanes are rows, so the steps from one column to the next
// need nothing from other lanes, and the tile stays in L1.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

static inline F divide(F a, F b) {
#if defined(BALLAST_AVX512)
  return {_mm512_div_ps(a.v, b.v)};
#elif defined(BALLAST_AVX2)
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
#else
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] / b.v[i];
  return a;
#endif
}

static inline F negated(F a) {
  return sub(broadcast(-0.0f), a);
}

// Of numbers below 2^22 in size, to the nearest whole one, ties to even.
static inline F rounded(F a) {
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23
  return sub(add(a, magic), magic);
}

struct ColumnFacts {
  F scale, whole_zero, half;  ///< the zero is whole_zero + half, 0 or 1/2
};

// The error of one column; its codes go to `code` as whole floats.
static inline F round_lanes(F w, const ColumnFacts& facts, float max_code, F pivot, float* code) {
  // Clamping first gives the same code, as the bounds are whole numbers, and keeps the rounding exact.
  const F low = negated(facts.whole_zero), high = sub(broadcast(max_code), facts.whole_zero);
  const F steps = add(divide(w, facts.scale), facts.half);
  const F whole = rounded(negated(max(negated(max(steps, low)), negated(high))));
  store(code, add(whole, facts.whole_zero));
  return divide(sub(w, mul(facts.scale, sub(whole, facts.half))), pivot);
}

// The first `count` lanes; the others are `rest`.
static inline F load_lanes(const float* p, int64_t count, float rest) {
  if (count == kLanes) return load(p);
  float lanes[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < count ? p[lane] : rest;
  return load(lanes);
}

// COLUMNS columns from `first` on: first the errors of all columns before them, with the sums in registers, then
// one by one. Columns of w hold −e once they are done. u: [width][kColumnGroup] of these columns.
template <int COLUMNS>
static void walk_group(const ColumnTask& task, int64_t first, const float* u, float* w, float* codes,
                       ColumnFacts& facts) {
  F column[COLUMNS];
#pragma GCC unroll 4
  for (int t = 0; t < COLUMNS; ++t) column[t] = load(w + (first + t) * kLanes);
  for (int64_t i = 0; i < first; ++i) {
    const F minus = load(w + i * kLanes);
#pragma GCC unroll 4
    for (int t = 0; t < COLUMNS; ++t) column[t] = fma(minus, broadcast(u[i * kColumnGroup + t]), column[t]);
  }
#pragma GCC unroll 4
  for (int t = 0; t < COLUMNS; ++t) {
    const int64_t i = first + t, group = task.groups[i];
    if (i == 0 || group != task.groups[i - 1]) {
      facts.scale = load_lanes(task.scales + group * task.group_stride, task.rows, 1);
      const F zero = load_lanes(task.zeros + group * task.group_stride, task.rows, 0);
      facts.whole_zero = rounded(sub(zero, broadcast(0.25f)));
      facts.half = sub(zero, facts.whole_zero);
    }
    const float* row = u + i * kColumnGroup;
    const F minus =
        negated(round_lanes(column[t], facts, task.max_code, broadcast(row[t]), codes + i * kLanes));
    store(w + i * kLanes, minus);
#pragma GCC unroll 4
    for (int later = t + 1; later < COLUMNS; ++later)
      column[later] = fma(minus, broadcast(row[later]), column[later]);
  }
}

static void round_columns(const ColumnTask& task) {
  const int64_t rows = task.rows, width = task.width;
  float *const w = task.scratch, *const codes = w + width * kLanes;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; ++i) w[i * kLanes + row] = task.w[row * task.w_stride + i];
  for (int64_t row = rows; row < kLanes; ++row)
    for (int64_t i = 0; i < width; ++i) w[i * kLanes + row] = 0;
  ColumnFacts facts{};
  for (int64_t first = 0; first < width; first += kColumnGroup) {
    const float* u = task.u + first * width;
    switch (width - first) {
      case 1:
        walk_group<1>(task, first, u, w, codes, facts);
        break;
      case 2:
        walk_group<2>(task, first, u, w, codes, facts);
        break;
      case 3:
        walk_group<3>(task, first, u, w, codes, facts);
        break;
      default:
        walk_group<4>(task, first, u, w, codes, facts);
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; ++i) {
      task.w[row * task.w_stride + i] = -w[i * kLanes + row];
      task.codes[row * task.code_stride + i] = uint8_t(codes[i * kLanes + row]);
    }
}

}  // namespace ballast::BALLAST_ISA
