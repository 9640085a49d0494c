// Text without what surrounds it.
#pragma once

#include <string_view>

namespace ballast {

/// `text` from its first to its last character that is not one of `surrounding`.
inline std::string_view trimmed(std::string_view text, std::string_view surrounding) {
  const size_t first = text.find_first_not_of(surrounding);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(surrounding) - first + 1);
}

}  // namespace ballast
