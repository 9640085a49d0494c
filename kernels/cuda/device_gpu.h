// The device header for nvcc: each function is an instruction or two. device_host.h says what each does.
#pragma once

#include <cuda_runtime.h>

namespace ballast::dev {

extern __shared__ __align__(128) char g_shared_memory[];

BALLAST_DEVICE int thread() {
  return int(threadIdx.x);
}
BALLAST_DEVICE int threads() {
  return int(blockDim.x);
}
BALLAST_DEVICE int block() {
  return int(blockIdx.x);
}
BALLAST_DEVICE int blocks() {
  return int(gridDim.x);
}
BALLAST_DEVICE int block_y() {
  return int(blockIdx.y);
}

template <class T>
class Shared {
 public:
  Shared() = default;
  BALLAST_DEVICE static Shared at(int byte, int) {
    return Shared(reinterpret_cast<T*>(g_shared_memory + byte));
  }
  BALLAST_DEVICE T get(int i) const { return p_[i]; }
  BALLAST_DEVICE void set(int i, T value) const { p_[i] = value; }
  BALLAST_DEVICE Shared from(int i) const { return Shared(p_ + i); }
  template <class U>
  BALLAST_DEVICE Shared<U> as() const {
    return Shared<U>(reinterpret_cast<U*>(p_));
  }
  BALLAST_DEVICE uint32_t address() const { return uint32_t(__cvta_generic_to_shared(p_)); }

 private:
  template <class>
  friend class Shared;
  BALLAST_DEVICE explicit Shared(T* p) : p_(p) {}
  T* p_;
};

BALLAST_DEVICE void sync_block() {
  __syncthreads();
}
BALLAST_DEVICE bool sync_block_any(bool mine) {
  return __syncthreads_or(mine);
}
BALLAST_DEVICE void sync_warp() {
  __syncwarp();
}

BALLAST_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
BALLAST_DEVICE int shuffle_xor(int value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
BALLAST_DEVICE float shuffle(float value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}

template <class T>
BALLAST_DEVICE void copy_async(Shared<T> to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address()), "l"(from),
               "r"(there ? 16 : 0));
}
class ReadOnce {
 public:
  BALLAST_DEVICE ReadOnce() { asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_)); }
  template <class T>
  BALLAST_DEVICE void copy_async(Shared<T> to, const void* from) const {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to.address()),
                 "l"(from), "l"(policy_));
  }

 private:
  uint64_t policy_;
};
BALLAST_DEVICE void copy_commit() {
  asm volatile("cp.async.commit_group;");
}
template <int Pending>
BALLAST_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

BALLAST_DEVICE void load_matrices(uint32_t (&r)[4], Shared<uint16_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
template <class Half>
BALLAST_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (Half::kType == DType::f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

BALLAST_DEVICE uint32_t and_or(uint32_t value, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
  return result;
}
BALLAST_DEVICE uint32_t select_bits(uint32_t mask, uint32_t ones, uint32_t zeros) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(result) : "r"(mask), "r"(ones), "r"(zeros));
  return result;
}
BALLAST_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

template <class Half>
BALLAST_DEVICE uint32_t pack_halves(float low, float high) {
  uint32_t result;
  if constexpr (Half::kType == DType::f16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}
template <class Half>
BALLAST_DEVICE Floats2 unpack_halves(uint32_t pair) {
  if constexpr (Half::kType == DType::bf16)
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  Floats2 result;
  asm("{\n .reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;\n}"
      : "=f"(result.x), "=f"(result.y)
      : "r"(pair));
  return result;
}
template <class Half>
BALLAST_DEVICE uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  if constexpr (Half::kType == DType::f16) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  }
  return result;
}
BALLAST_DEVICE uint32_t sub_halves_f16(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
BALLAST_DEVICE float half_to_float(uint16_t half) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(half));
  return result;
}
BALLAST_DEVICE float bfloat_to_float(uint16_t half) {
  return __uint_as_float(uint32_t(half) << 16);
}
BALLAST_DEVICE uint16_t float_to_half(float value) {
  uint16_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return result;
}

BALLAST_DEVICE float fma(float a, float b, float c) {
  return fmaf(a, b, c);
}
BALLAST_DEVICE float multiply(float a, float b) {
  return __fmul_rn(a, b);
}
BALLAST_DEVICE double fma(double a, double b, double c) {
  return ::fma(a, b, c);
}
BALLAST_DEVICE double exp(double value) {
  return ::exp(value);
}
BALLAST_DEVICE double sqrt(double value) {
  return ::sqrt(value);
}
BALLAST_DEVICE float max(float a, float b) {
  return fmaxf(a, b);
}
BALLAST_DEVICE bool is_finite(float value) {
  return isfinite(value);
}
BALLAST_DEVICE float min(float a, float b) {
  return fminf(a, b);
}
BALLAST_DEVICE float exp(float value) {
  return expf(value);
}
BALLAST_DEVICE float erf(float value) {
  return erff(value);
}
BALLAST_DEVICE float sqrt(float value) {
  return sqrtf(value);
}
BALLAST_DEVICE float round_to_even(float value) {
  return rintf(value);
}
BALLAST_DEVICE uint32_t bits_of(float value) {
  return __float_as_uint(value);
}
BALLAST_DEVICE float float_of(uint32_t bits) {
  return __uint_as_float(bits);
}

BALLAST_DEVICE int atomic_add(int* counter, int value) {
  return atomicAdd(counter, value);
}
BALLAST_DEVICE void fence() {
  __threadfence();
}
template <class T>
BALLAST_DEVICE T load_shared_by_blocks(const T* from) {
  return __ldcg(from);
}

}  // namespace ballast::dev
