#include "engine/runtime/stop_strings.h"

#include <algorithm>

#include "kernels/check.h"

namespace ballast {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const std::string& text : strings_)
    if (text.empty()) throw Error("a stop string is empty, expected at least one character");
}

std::string StopStrings::push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;
  size_t stop = held_.npos;
  for (const std::string& text : strings_) stop = std::min(stop, held_.find(text));
  if (stop != held_.npos) {
    stopped_ = true;
    std::string shown = held_.substr(0, stop);
    held_.clear();
    return shown;
  }
  size_t kept = 0;  // longest end of held_ that begins a stop string
  for (const std::string& text : strings_) {
    for (size_t length = std::min(text.size() - 1, held_.size()); length > kept; --length) {
      if (held_.ends_with(std::string_view(text).substr(0, length))) kept = length;
    }
  }
  std::string shown = held_.substr(0, held_.size() - kept);
  held_.erase(0, held_.size() - kept);
  return shown;
}

std::string StopStrings::flush() {
  std::string rest = std::move(held_);
  held_.clear();
  return rest;
}

}  // namespace ballast
