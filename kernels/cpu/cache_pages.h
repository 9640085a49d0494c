// Pages of the key/value cache, one instruction set (see simd.h): where a head's keys and values lie, in floats or as
// signed bytes with a scale for each position (ops/attention.h).
//
// Codes become floats as they are loaded: two instructions for each vector, and a quarter of the bytes, which are what
// a query alone waits for. Scales of keys are taken to the scores, those of values to the weights, so a code costs no
// multiplication of its own.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace ballast::BALLAST_ISA {

static inline F load_cached(const float* p) {
  return load(p);
}
static inline F load_cached(const int8_t* p) {
  return load_signed_bytes(p);
}
template <class E>
static inline F load_first(const E* p, int64_t count) {
  float part[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return load(part);
}

template <class E>
inline constexpr bool kCoded = sizeof(E) == 1;
template <class E>
static inline int64_t page_elements(int64_t head_dim) {
  return kLanes * (kCoded<E> ? head_dim + int64_t(sizeof(float)) : head_dim);
}
template <class E>
static inline E* key_page(const AttentionTask& task, int64_t position, int64_t head) {
  const int64_t page = int64_t(task.pages[position / kLanes]) * 2 * task.heads + head;
  return reinterpret_cast<E*>(task.cache) + page * page_elements<E>(task.head_dim);
}
template <class E>
static inline E* value_page(const AttentionTask& task, int64_t position, int64_t head) {
  return key_page<E>(task, position, head) + task.heads * page_elements<E>(task.head_dim);
}
// Of a page of codes.
static inline float* page_scales(int8_t* page, int64_t head_dim) {
  return reinterpret_cast<float*>(page + head_dim * kLanes);
}
static inline const float* page_scales(const int8_t* page, int64_t head_dim) {
  return reinterpret_cast<const float*>(page + head_dim * kLanes);
}

static inline void append_floats(const AttentionTask& task, int64_t head) {
  for (int64_t row = 0; row < task.rows; ++row) {
    const int64_t position = task.past + row, lane = position % kLanes;
    float* keys = key_page<float>(task, position, head);
    float* values = value_page<float>(task, position, head) + lane * task.head_dim;
    const float* k = task.k + row * task.k_stride + head * task.head_dim;
    const float* v = task.v + row * task.v_stride + head * task.head_dim;
    for (int64_t d = 0; d < task.head_dim; ++d) keys[d * kLanes + lane] = k[d];
    for (int64_t d = 0; d < task.head_dim; ++d) values[d] = v[d];
  }
}

// codes[d · stride] of x [count]; returns the scale.
static inline float encode_cached(const float* x, int64_t count, int8_t* codes, int64_t stride) {
  float largest = 0;
  bool finite = true;
  for (int64_t d = 0; d < count; ++d) {
    const float size = __builtin_fabsf(x[d]);
    finite = finite && size <= 0x1.fffffep127f;  // of a NaN, too, this is false
    largest = size > largest ? size : largest;
  }
  if (!finite || largest < 0x1p-100f) {
    for (int64_t d = 0; d < count; ++d) codes[d * stride] = 0;
    return finite ? 0 : __builtin_nanf("");
  }
  const float inverse = 127.0f / largest;
  for (int64_t d = 0; d < count; ++d) {
    const float shifted =
        x[d] * inverse + 12582912.0f;  // 1.5 · 2^23: the sum's last bits are the nearest integer
    int32_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    codes[d * stride] = int8_t(bits);
  }
  return largest / 127.0f;
}

static inline void append_codes(const AttentionTask& task, int64_t head) {
  for (int64_t row = 0; row < task.rows; ++row) {
    const int64_t position = task.past + row, lane = position % kLanes, dim = task.head_dim;
    int8_t* keys = key_page<int8_t>(task, position, head);
    int8_t* values = value_page<int8_t>(task, position, head);
    page_scales(keys, dim)[lane] =
        encode_cached(task.k + row * task.k_stride + head * dim, dim, keys + lane, kLanes);
    page_scales(values, dim)[lane] =
        encode_cached(task.v + row * task.v_stride + head * dim, dim, values + lane * dim, 1);
  }
}

static void append(const AttentionTask& task, int64_t head) {
  task.coded ? append_codes(task, head) : append_floats(task, head);
}

}  // namespace ballast::BALLAST_ISA
