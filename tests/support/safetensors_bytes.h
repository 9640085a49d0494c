// Safetensors files put together by hand, right or wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ballast {

/// Header length (that of `header`, or `length` if not -1), header, and `data_bytes` bytes counting up from
/// 0.
inline std::string safetensors_bytes(std::string_view header, size_t data_bytes, int64_t length = -1) {
  const uint64_t stated = length == -1 ? header.size() : uint64_t(length);
  std::string out;
  for (int i = 0; i < 8; ++i) out += char(stated >> (8 * i) & 0xFF);
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out += char(i & 0xFF);
  return out;
}

}  // namespace ballast
