#include "engine/io/packed_bits.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "kernels/check.h"

namespace ballast {
namespace {

using Codes = std::array<uint8_t, 32>;
using Words = std::array<uint32_t, 8>;

uint32_t load_word(const char* words, int64_t index) {
  uint32_t word;
  std::memcpy(&word, words + index * 4, 4);
  return word;
}

// Eight codes of kBits bits fill kBits bytes. Each of three steps moves the upper half of every field, of 8 codes in
// 64 bits first, then of 4 in 32, then of 2 in 16, to where a field of half the width begins.
struct Halving {
  int shift;
  uint64_t lower, upper;  ///< halves of the narrow fields
};
template <int kBits>
constexpr Halving halving(int width) {
  const int half = width / 16 * kBits;
  Halving out{width / 2 - half, 0, 0};
  for (int at = 0; at < 64; at += width) out.lower |= ((uint64_t(1) << half) - 1) << at;
  out.upper = out.lower << half;
  return out;
}
template <int kBits>
constexpr Halving kHalvings[] = {halving<kBits>(64), halving<kBits>(32), halving<kBits>(16)};

template <int kBits>
uint64_t spread(uint64_t packed) {
  for (const auto& [shift, lower, upper] : kHalvings<kBits>)
    packed = (packed & lower) | (packed & upper) << shift;
  return packed;
}

template <int kBits>
uint64_t squeeze(uint64_t codes) {
  for (int i = 2; i >= 0; --i) {
    const auto& [shift, lower, upper] = kHalvings<kBits>[i];
    codes = (codes & lower) | (codes >> shift & upper);
  }
  return codes;
}

static_assert(std::endian::native == std::endian::little);

template <int kBits>
void pack_block(const Codes& codes, Words& words) {
  std::array<char, 40> bytes{};
  for (size_t i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, codes.data() + 8 * i, 8);
    eight = squeeze<kBits>(eight);
    std::memcpy(bytes.data() + i * kBits, &eight, 8);  // what is beyond its bytes is overwritten
  }
  std::memcpy(words.data(), bytes.data(), sizeof(words));
}

template <int kBits>
void unpack_block(const Words& words, uint8_t* codes) {
  // From registers: a load of 8 bytes stored as two words would wait for both.
  for (size_t i = 0; i < 4; ++i) {
    const size_t word = i * kBits / 4, shift = i * kBits % 4 * 8;
    uint64_t eight = words[word] >> shift;
    if (shift + 8 * kBits > 32) eight |= uint64_t(words[word + 1]) << (32 - shift);
    if (shift + 8 * kBits > 64) eight |= uint64_t(words[word + 2]) << (64 - shift) % 64;
    eight = spread<kBits>(eight);
    std::memcpy(codes + 8 * i, &eight, 8);
  }
}

template <int kBits>
void pack(const uint8_t* codes, int64_t count, uint32_t* words, int64_t stride) {
  const auto put = [&](const Codes& in, int64_t first, int64_t used) {
    Words block{};
    pack_block<kBits>(in, block);
    for (int64_t i = 0; i < used; ++i) words[(first / 32 * kBits + i) * stride] = block[size_t(i)];
  };
  const int64_t whole = count / 32 * 32;
  Codes in;
  for (int64_t first = 0; first < whole; first += 32) {
    std::memcpy(in.data(), codes + first, 32);
    put(in, first, kBits);
  }
  if (whole == count) return;
  in = {};
  std::copy(codes + whole, codes + count, in.begin());
  put(in, whole, packed_words(count - whole, kBits));
}

template <int kBits>
void unpack(const char* words, int64_t count, uint8_t* codes, int64_t stride) {
  const auto get = [&](int64_t first, int64_t used, uint8_t* out) {
    Words block{};
    for (int64_t i = 0; i < used; ++i) block[size_t(i)] = load_word(words, (first / 32 * kBits + i) * stride);
    unpack_block<kBits>(block, out);
  };
  const int64_t whole = count / 32 * 32;
  for (int64_t first = 0; first < whole; first += 32) get(first, kBits, codes + first);
  if (whole == count) return;
  Codes out;
  get(whole, packed_words(count - whole, kBits), out.data());
  std::copy_n(out.begin(), count - whole, codes + whole);
}

}  // namespace

void pack_codes(const uint8_t* codes, int64_t count, int bits, uint32_t* words, int64_t stride) {
  using Pack = void (*)(const uint8_t*, int64_t, uint32_t*, int64_t);
  static constexpr Pack kPack[] = {pack<1>, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, pack<7>, pack<8>};
  CHECK(bits >= 1 && bits <= 8, bits);
  kPack[bits - 1](codes, count, words, stride);
}

void unpack_codes(const char* words, int64_t count, int bits, uint8_t* codes, int64_t stride) {
  using Unpack = void (*)(const char*, int64_t, uint8_t*, int64_t);
  static constexpr Unpack kUnpack[] = {unpack<1>, unpack<2>, unpack<3>, unpack<4>,
                                       unpack<5>, unpack<6>, unpack<7>, unpack<8>};
  CHECK(bits >= 1 && bits <= 8, bits);
  kUnpack[bits - 1](words, count, codes, stride);
}

void unpack_padded_codes(const char* words, int64_t count, uint8_t* codes, int64_t stride) {
  for (int64_t i = 0; i < count; ++i)
    codes[i] = uint8_t(load_word(words, i / 10 * stride) >> (3 * int(i % 10)) & 7u);
}

}  // namespace ballast
