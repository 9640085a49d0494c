#include "engine/evaluation/image_list.h"

#include <charconv>

#include "engine/io/json.h"
#include "engine/io/trimmed.h"

namespace ballast {
namespace {

constexpr std::string_view kSpace = " \t\r,";

// A path may hold spaces and commas; what follows the last of them, if it is a number, is the class.
ListedImage entry_of(std::string_view line) {
  const size_t gap = line.find_last_of(kSpace);
  ListedImage entry{.path = std::string(line)};
  if (gap == std::string_view::npos) return entry;
  const char *first = line.data() + gap + 1, *last = line.data() + line.size();
  int64_t label = -1;
  const auto [end, status] = std::from_chars(first, last, label);
  if (status != std::errc() || end != last || label < 0) return entry;
  entry.label = label;
  entry.path = std::string(trimmed(line.substr(0, gap), kSpace));
  return entry;
}

}  // namespace

std::vector<ListedImage> read_image_list(const std::filesystem::path& list, const std::filesystem::path& root,
                                         int64_t classes) {
  const std::string text = read_file(list, uint64_t(256) << 20);
  const std::filesystem::path folder = root.empty() ? list.parent_path() : root;
  std::vector<ListedImage> entries;
  int64_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = trimmed(rest.substr(0, end), kSpace);
    rest.remove_prefix(std::min(rest.size(), end + 1));
    ++number;
    if (line.empty() || line.front() == '#') continue;
    ListedImage entry = entry_of(line);
    if (classes > 0 && (entry.label < 0 || entry.label >= classes))
      throw Error(str(list.string(), ", line ", number, ": ", shown(line), ": expected a path and a class index below ",
                      classes));
    entry.file = folder / entry.path;
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) throw Error(list.string() + ": lists no images");
  return entries;
}

}  // namespace ballast
