#include "engine/io/packed_bits.h"

#include "kernels/check.h"

namespace ballast {
namespace {

template <int kBits>
void pack(const uint8_t* codes, uint32_t* words) {
  // A window of 64 bits, of which the low 32 leave as soon as they are complete.
  uint64_t window = 0;
  int filled = 0;
  for (int i = 0; i < 32; ++i) {
    window |= uint64_t(codes[i]) << filled;
    filled += kBits;
    if (filled < 32) continue;
    *words++ = uint32_t(window);
    window >>= 32;
    filled -= 32;
  }
}

template <int kBits>
void unpack(const uint32_t* words, uint8_t* codes) {
  uint64_t window = 0;
  int filled = 0;
  for (int i = 0; i < 32; ++i) {
    if (filled < kBits) {
      window |= uint64_t(*words++) << filled;
      filled += 32;
    }
    codes[i] = uint8_t(window & ((1u << kBits) - 1));
    window >>= kBits;
    filled -= kBits;
  }
}

}  // namespace

void pack_32_codes(const uint8_t* codes, int bits, uint32_t* words) {
  if (bits == 2) return pack<2>(codes, words);
  if (bits == 3) return pack<3>(codes, words);
  if (bits == 4) return pack<4>(codes, words);
  CHECK(bits == 8, bits);
  pack<8>(codes, words);
}

void unpack_32_codes(const uint32_t* words, int bits, uint8_t* codes) {
  if (bits == 2) return unpack<2>(words, codes);
  if (bits == 3) return unpack<3>(words, codes);
  if (bits == 4) return unpack<4>(words, codes);
  CHECK(bits == 8, bits);
  unpack<8>(words, codes);
}

}  // namespace ballast
