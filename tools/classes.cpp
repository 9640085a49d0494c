#include "tools/classes.h"

#include <sstream>

#include "engine/io/json.h"

namespace ballast {

std::vector<std::string> class_names(const Checkpoint& checkpoint, int64_t classes,
                                     const std::string& labels_file) {
  std::vector<std::string> names;
  if (!labels_file.empty()) {
    std::istringstream lines(read_file(labels_file, 16 << 20));
    for (std::string line; std::getline(lines, line);) {
      if (line.ends_with('\r')) line.pop_back();
      names.push_back(line);
    }
    if (int64_t(names.size()) != classes)
      throw Error(str(labels_file, ": has ", names.size(), " lines, expected one for each of ", classes, " classes"));
    return names;
  }
  for (int64_t i = 0; i < classes; ++i) names.push_back(str(i));
  const std::string file = (checkpoint.folder() / "config.json").string();
  const nlohmann::json* stored = json_find(checkpoint.config(), "id2label", file);
  if (!stored || !stored->is_object()) return names;
  for (int64_t i = 0; i < classes; ++i)
    if (const auto found = stored->find(str(i)); found != stored->end() && found->is_string())
      names[size_t(i)] = found->get<std::string>();
  return names;
}

}  // namespace ballast
