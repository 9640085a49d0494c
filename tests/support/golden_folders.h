// The cases of a folder of goldens, one subfolder each.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace ballast::test {

/// Names of the subfolders, in alphabetical order.
inline std::vector<std::string> subfolders(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace ballast::test
