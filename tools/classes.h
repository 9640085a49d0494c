// Names of a model's classes.
#pragma once

#include <string>
#include <vector>

#include "engine/io/checkpoint.h"

namespace ballast {

/// One name for each class: the lines of `labels_file`, or id2label of config.json, or the index. Error when a file has
/// another number of lines.
std::vector<std::string> class_names(const Checkpoint& checkpoint, int64_t classes,
                                     const std::string& labels_file);

}  // namespace ballast
