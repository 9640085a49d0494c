// Codes of 1 to 8 bits to and from 32-bit words: a stream of bits, low bits first, so that 32 codes
// fill `bits` words and a 3-bit code may straddle two words.
#pragma once

#include <cstdint>

namespace ballast {

/// Words that `count` codes take.
constexpr int64_t packed_words(int64_t count, int bits) {
  return (count * bits + 31) / 32;
}

/// Packs `count` codes, each below 2^bits, into packed_words() words that are `stride` words apart.
void pack_codes(const uint8_t* codes, int64_t count, int bits, uint32_t* words, int64_t stride = 1);
/// The reverse. `words` need not be aligned.
void unpack_codes(const char* words, int64_t count, int bits, uint8_t* codes, int64_t stride = 1);

/// The older form of 3-bit codes in pack-quantized: 10 codes a word, the upper two bits unused.
constexpr int64_t padded_words(int64_t count) {
  return (count + 9) / 10;
}
void unpack_padded_codes(const char* words, int64_t count, uint8_t* codes, int64_t stride = 1);

}  // namespace ballast
