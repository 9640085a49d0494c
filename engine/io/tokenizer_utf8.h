// Stepping through bytes that may or may not be UTF-8 (Unicode 15, table 3-7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ballast {

enum class Utf8Kind {
  kValid,      // one well-formed character
  kInvalid,    // a maximal subpart: the longest start of a well-formed character that is there, at least one
               // byte
  kTruncated,  // the bytes end inside a character that is well-formed so far
};

struct Utf8Step {
  Utf8Kind kind;
  size_t length;        // bytes, at least 1
  char32_t code_point;  // kValid only
};

/// What `bytes` (not empty) starts with.
Utf8Step utf8_step(std::string_view bytes);

/// Length of the longest prefix that is well-formed UTF-8.
size_t valid_utf8_prefix(std::string_view bytes);

/// Code point of the last character of `text`, which is well-formed UTF-8 at its end; 0 if it is not or is
/// empty.
char32_t last_code_point(std::string_view text);

/// Appends `code_point` (a Unicode scalar value) to `text`.
void append_utf8(std::string& text, char32_t code_point);

/// Unicode property White_Space.
bool is_white_space(char32_t code_point);

}  // namespace ballast
