#include "engine/io/packed_bits.h"

#include <algorithm>
#include <array>
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

template <int kBits>
void pack_block(const Codes& codes, Words& words) {
  // A window of 64 bits, of which the low 32 leave as soon as they are complete.
  uint64_t window = 0;
  int filled = 0;
  size_t word = 0;
  for (size_t i = 0; i < 32; ++i) {
    window |= uint64_t(codes[i]) << filled;
    filled += kBits;
    if (filled < 32) continue;
    words[word++] = uint32_t(window);
    window >>= 32;
    filled -= 32;
  }
}

template <int kBits>
void unpack_block(const Words& words, Codes& codes) {
  uint64_t window = 0;
  int filled = 0;
  size_t word = 0;
  for (size_t i = 0; i < 32; ++i) {
    if (filled < kBits) {
      window |= uint64_t(words[word++]) << filled;
      filled += 32;
    }
    codes[i] = uint8_t(window & ((1u << kBits) - 1));
    window >>= kBits;
    filled -= kBits;
  }
}

template <int kBits>
void pack(const uint8_t* codes, int64_t count, uint32_t* words, int64_t stride) {
  for (int64_t first = 0, at = 0; first < count; first += 32, at += kBits) {
    const int64_t here = std::min<int64_t>(32, count - first);
    Codes in{};
    Words block{};
    std::copy_n(codes + first, here, in.begin());
    pack_block<kBits>(in, block);
    for (int64_t i = 0; i < packed_words(here, kBits); ++i) words[(at + i) * stride] = block[size_t(i)];
  }
}

template <int kBits>
void unpack(const char* words, int64_t count, uint8_t* codes, int64_t stride) {
  for (int64_t first = 0, at = 0; first < count; first += 32, at += kBits) {
    const int64_t here = std::min<int64_t>(32, count - first);
    Codes out{};
    Words block{};
    for (int64_t i = 0; i < packed_words(here, kBits); ++i)
      block[size_t(i)] = load_word(words, (at + i) * stride);
    unpack_block<kBits>(block, out);
    std::copy_n(out.begin(), here, codes + first);
  }
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
