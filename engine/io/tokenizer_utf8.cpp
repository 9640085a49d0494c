#include "engine/io/tokenizer_utf8.h"

#include <algorithm>
#include <cstring>

namespace ballast {
namespace {

struct Lead {
  size_t length;      // of the whole character; 0 if the byte cannot start one
  uint8_t low, high;  // range of the second byte
};

Lead lead(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};  // continuation bytes and overlong forms
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0) return {3, uint8_t(byte == 0xE0 ? 0xA0 : 0x80), uint8_t(byte == 0xED ? 0x9F : 0xBF)};
  if (byte < 0xF5) return {4, uint8_t(byte == 0xF0 ? 0x90 : 0x80), uint8_t(byte == 0xF4 ? 0x8F : 0xBF)};
  return {0, 0, 0};
}

}  // namespace

Utf8Step utf8_step(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const Lead first = lead(at(0));
  if (first.length == 0) return {Utf8Kind::kInvalid, 1, 0};
  if (first.length == 1) return {Utf8Kind::kValid, 1, at(0)};
  char32_t code_point = at(0) & (0x7F >> first.length);
  for (size_t i = 1; i < first.length; ++i) {
    if (i == bytes.size()) return {Utf8Kind::kTruncated, i, 0};
    const uint8_t low = i == 1 ? first.low : 0x80;
    const uint8_t high = i == 1 ? first.high : 0xBF;
    if (at(i) < low || at(i) > high) return {Utf8Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (at(i) & 0x3F);
  }
  return {Utf8Kind::kValid, first.length, code_point};
}

size_t valid_utf8_prefix(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    uint64_t eight;
    if (i + sizeof eight <= bytes.size()) {
      std::memcpy(&eight, bytes.data() + i, sizeof eight);
      if ((eight & 0x8080808080808080u) == 0) {
        i += sizeof eight;
        continue;
      }
    }
    const Utf8Step step = utf8_step(bytes.substr(i));
    if (step.kind != Utf8Kind::kValid) break;
    i += step.length;
  }
  return i;
}

char32_t last_code_point(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(4, text.size()); ++length) {
    const Utf8Step step = utf8_step(text.substr(text.size() - length));
    if (step.kind == Utf8Kind::kValid) return step.length == length ? step.code_point : 0;
  }
  return 0;
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (code_point >> shift & 0x3F)); };
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | code_point >> 6);
    tail(0);
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | code_point >> 12);
    tail(6), tail(0);
  } else {
    text += static_cast<char>(0xF0 | code_point >> 18);
    tail(12), tail(6), tail(0);
  }
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace ballast
