// A list of images: a line each of path and class index, separated by commas or white space.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ballast {

struct ListedImage {
  std::string path;            ///< as the list has it
  std::filesystem::path file;  ///< under the list's folder, or `root`
  int64_t label = -1;          ///< -1: none
};

/// Empty lines and lines that start with # do not count. With `classes` every line needs a class index below it;
/// with 0 an index may be missing and is not looked at. Error naming file and line.
std::vector<ListedImage> read_image_list(const std::filesystem::path& list, const std::filesystem::path& root,
                                         int64_t classes);

}  // namespace ballast
