// Ends a text stream at the first of several strings, wherever its pieces were cut.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ballast {

class StopStrings {
 public:
  /// Error when a string is empty.
  explicit StopStrings(std::vector<std::string> strings);

  /// Text that can be shown now that `piece` came: everything up to a stop string, or up to what may still
  /// become one.
  std::string push(std::string_view piece);
  /// What was held back, once no more text can come.
  std::string flush();
  /// True once a stop string was seen; it and all after it is dropped.
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace ballast
