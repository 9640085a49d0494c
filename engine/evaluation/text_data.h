// A text file as one evaluation text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ballast {

enum class Dataset : uint8_t { text, wikitext2, ptb };
const char* name_of(Dataset dataset);
/// Error unless `name` is text, wikitext2 or ptb.
Dataset dataset_from(const std::string& name);

/// How published figures join a file's lines before they are tokenized once:
///   text       the file as it is
///   wikitext2  each line with its newline is a row, a line of white space only an empty row; rows joined by two newlines
///   ptb        each line without the white space around it is a row; rows joined by one space
/// `joined_by` overrides what stands between rows; Error for `text`, which has no rows.
std::string join_rows(std::string_view raw, Dataset dataset,
                      const std::optional<std::string>& joined_by = {});

}  // namespace ballast
