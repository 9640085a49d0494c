// The device header for the host compiler. Arithmetic is done here; everything that concerns other threads is declared only
// and defined by the block emulator.
#pragma once

#include <bit>
#include <cmath>

namespace ballast::dev {

int thread();   ///< of the block
int threads();  ///< in it
int block();    ///< of the grid's first dimension
int blocks();   ///< in it
int block_y();  ///< of the second

/// What the emulator is told of an access to shared memory. `first`, `count`: the array's; in bytes from the beginning.
enum class SharedAccess : uint8_t { read, write };
char* shared_bytes(int first, int bytes, int begin, int end, SharedAccess access);

/// An array in shared memory. Plain values in and out, so that the emulator sees every access.
template <class T>
class Shared {
 public:
  Shared() = default;
  static Shared at(int byte, int count) { return Shared(byte, byte, byte + count * int(sizeof(T))); }
  T get(int i) const { return *reinterpret_cast<T*>(touch(i, SharedAccess::read)); }
  void set(int i, T value) const { *reinterpret_cast<T*>(touch(i, SharedAccess::write)) = value; }
  /// The array from element `i` on.
  Shared from(int i) const { return Shared(byte_ + i * int(sizeof(T)), begin_, end_); }
  /// The same bytes as another type.
  template <class U>
  Shared<U> as() const {
    return Shared<U>(byte_, begin_, end_);
  }
  int address() const { return byte_; }
  int begin() const { return begin_; }
  int end() const { return end_; }

 private:
  template <class>
  friend class Shared;
  Shared(int byte, int begin, int end) : byte_(byte), begin_(begin), end_(end) {}
  char* touch(int i, SharedAccess access) const {
    return shared_bytes(byte_ + i * int(sizeof(T)), int(sizeof(T)), begin_, end_, access);
  }
  int byte_ = 0, begin_ = 0, end_ = 0;
};

/// Block: waits for all threads; what they wrote before is seen by all.
void sync_block();
/// Block: the same, and tells all threads whether any of them says true.
bool sync_block_any(bool mine);
/// Warp: the same for its lanes.
void sync_warp();

/// Warp: the value of lane `lane() ^ mask`, or of lane `source`.
float shuffle_xor(float value, int mask);
int shuffle_xor(int value, int mask);
float shuffle(float value, int source);

/// Begins to copy 16 bytes from global to shared memory, both 16-byte aligned; zeros when not `there`. Nobody may look at the
/// target before the copy was waited for, and threads other than this one not before a barrier behind that.
void copy_async(int to, int begin, int end, const void* from, bool there);
template <class T>
void copy_async(Shared<T> to, const void* from, bool there) {
  copy_async(to.address(), to.begin(), to.end(), from, there);
}
/// Copies data that is read once: the cache is told to give it up first.
class ReadOnce {
 public:
  template <class T>
  void copy_async(Shared<T> to, const void* from) const {
    dev::copy_async(to, from, true);
  }
};
/// This thread's copies since the last commit become a group.
void copy_commit();
/// Waits until at most that many of this thread's groups are on their way.
void copy_wait_for(int pending);
template <int Pending>
void copy_wait() {
  copy_wait_for(Pending);
}

/// Warp, ldmatrix.x4: lane i names row i % 8 of 8x8 matrix i / 8, eight halves at a 16-byte aligned place. r[m] receives
/// elements 2·(lane % 4) and the next of row lane / 4 of matrix m.
void load_matrices(uint32_t (&r)[4], Shared<uint16_t> row);

/// Warp, mma.m16n8k16 with f32 sums: c += a · b. With r = lane / 4 and t = lane % 4, in pairs along k (a, b) or n (c):
///   a[0..3]: rows r, r + 8, r, r + 8 at k = 2t, 2t, 2t + 8, 2t + 8;   b0, b1: column r at k = 2t, 2t + 8
///   c[0..3]: row r, columns 2t, 2t + 1; row r + 8, the same columns
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, DType type);
template <class Half>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_add(c, a, b0, b1, Half::kType);
}

/// (value & mask) | bits, one lop3.
inline uint32_t and_or(uint32_t value, uint32_t mask, uint32_t bits) {
  return (value & mask) | bits;
}
/// Bits of `ones` where the mask is set, of `zeros` elsewhere; one lop3.
inline uint32_t select_bits(uint32_t mask, uint32_t ones, uint32_t zeros) {
  return (mask & ones) | (~mask & zeros);
}
/// prmt: byte i of the result is byte (selector >> 4i) & 7 of high:low.
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

inline float half_to_float(uint16_t half) {
  return f16_to_f32(half);
}
inline float bfloat_to_float(uint16_t half) {
  return bf16_to_f32(half);
}
inline uint16_t float_to_half(float value) {
  return f32_to_f16(value);
}
/// Two floats rounded to 16 bits, to nearest even.
template <class Half>
uint32_t pack_halves(float low, float high) {
  if constexpr (Half::kType == DType::f16) return uint32_t(f32_to_f16(high)) << 16 | f32_to_f16(low);
  return uint32_t(f32_to_bf16(high)) << 16 | f32_to_bf16(low);
}
template <class Half>
Floats2 unpack_halves(uint32_t pair) {
  if constexpr (Half::kType == DType::f16)
    return {f16_to_f32(uint16_t(pair)), f16_to_f32(uint16_t(pair >> 16))};
  return {bf16_to_f32(uint16_t(pair)), bf16_to_f32(uint16_t(pair >> 16))};
}
/// a · b + c for both halves. Kernels use it where the result is exact; elsewhere this may round twice.
template <class Half>
uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
  const Floats2 x = unpack_halves<Half>(a), y = unpack_halves<Half>(b), z = unpack_halves<Half>(c);
  return pack_halves<Half>(float(double(x.x) * y.x + z.x), float(double(x.y) * y.y + z.y));
}
inline uint32_t sub_halves_f16(uint32_t a, uint32_t b) {
  const Floats2 x = unpack_halves<F16>(a), y = unpack_halves<F16>(b);
  return pack_halves<F16>(x.x - y.x, x.y - y.y);
}

inline float fma(float a, float b, float c) {
  return std::fma(a, b, c);
}
/// a · b rounded by itself, never joined with an addition.
inline float multiply(float a, float b) {
  return a * b;
}
inline double fma(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline double sqrt(double value) {
  return std::sqrt(value);
}
/// The other one when one is NaN.
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline bool is_finite(float value) {
  return std::isfinite(value);
}
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float exp(float value) {
  return std::exp(value);
}
inline double exp(double value) {
  return std::exp(value);
}
inline float erf(float value) {
  return std::erf(value);
}
inline float sqrt(float value) {
  return std::sqrt(value);
}
inline float round_to_even(float value) {
  return std::nearbyint(value);
}
inline uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}
inline float float_of(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

/// Returns what the counter in global memory was.
int atomic_add(int* counter, int value);
/// What this thread wrote to global memory is seen by other blocks before what it writes later.
void fence();
/// Reads what other blocks of this launch wrote.
template <class T>
T load_shared_by_blocks(const T* from) {
  return *from;
}

}  // namespace ballast::dev
