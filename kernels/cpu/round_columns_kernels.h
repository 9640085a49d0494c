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

// The error of one column; its codes go to `code` as whole floats.
static inline F round_lanes(F w, F scale, F zero, float max_code, F pivot, float* code) {
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  // Clamping first gives the same code, as the bounds are whole numbers, and keeps the sum with `magic` exact.
  const F low = negated(zero), high = sub(broadcast(max_code), zero);
  const F steps = negated(max(negated(max(divide(w, scale), low)), negated(high)));
  const F whole = sub(add(steps, magic), magic);
  store(code, add(whole, zero));
  return divide(sub(w, mul(scale, whole)), pivot);
}

// The first `count` lanes; the others are `rest`.
static inline F load_lanes(const float* p, int64_t count, float rest) {
  if (count == kLanes) return load(p);
  float lanes[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < count ? p[lane] : rest;
  return load(lanes);
}

static void round_columns(const ColumnTask& task) {
  const int64_t rows = task.rows, width = task.width;
  float *const w = task.scratch, *const codes = w + width * kLanes;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; ++i) w[i * kLanes + row] = task.w[row * task.w_stride + i];
  for (int64_t row = rows; row < kLanes; ++row)
    for (int64_t i = 0; i < width; ++i) w[i * kLanes + row] = 0;
  F scale = broadcast(1), zero = broadcast(0);
  for (int64_t i = 0; i < width; ++i) {
    if (i == 0 || task.groups[i] != task.groups[i - 1]) {
      scale = load_lanes(task.scales + task.groups[i] * task.group_stride, rows, 1);
      zero = load_lanes(task.zero_points + task.groups[i] * task.group_stride, rows, 0);
    }
    const float* u = task.u + i * task.u_stride;
    const F error =
        round_lanes(load(w + i * kLanes), scale, zero, task.max_code, broadcast(u[i]), codes + i * kLanes);
    store(w + i * kLanes, error);
    const F minus = negated(error);
#pragma GCC unroll 4
    for (int64_t j = i + 1; j < width; ++j)
      store(w + j * kLanes, fma(minus, broadcast(u[j]), load(w + j * kLanes)));
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; ++i) {
      task.w[row * task.w_stride + i] = w[i * kLanes + row];
      task.codes[row * task.code_stride + i] = uint8_t(codes[i * kLanes + row]);
    }
}

}  // namespace ballast::BALLAST_ISA
