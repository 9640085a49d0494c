// Codes of 2, 3, 4 or 8 bits to and from 32-bit words.
#pragma once

#include <cstdint>

namespace ballast {

/// GPTQ's unit: 32 codes as a stream of bits in `bits` words, low bits first, so a 3-bit code may straddle
/// two words. Codes must be below 2^bits.
void pack_32_codes(const uint8_t* codes, int bits, uint32_t* words);
void unpack_32_codes(const uint32_t* words, int bits, uint8_t* codes);

/// Codes per word of pack-quantized, where none straddles: 16, 10, 8, 4.
constexpr int codes_per_word(int bits) {
  return 32 / bits;
}

}  // namespace ballast
