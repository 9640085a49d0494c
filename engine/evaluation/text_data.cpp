#include "engine/evaluation/text_data.h"

#include "engine/io/trimmed.h"
#include "kernels/check.h"

namespace ballast {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";

}  // namespace

const char* name_of(Dataset dataset) {
  switch (dataset) {
    case Dataset::text:
      return "text";
    case Dataset::wikitext2:
      return "wikitext2";
    case Dataset::ptb:
      return "ptb";
  }
  return "?";
}

Dataset dataset_from(const std::string& name) {
  for (const Dataset dataset : {Dataset::text, Dataset::wikitext2, Dataset::ptb})
    if (name == name_of(dataset)) return dataset;
  throw Error(str("--dataset is \"", name, "\", expected text, wikitext2 or ptb"));
}

std::string join_rows(std::string_view raw, Dataset dataset, const std::optional<std::string>& joined_by) {
  if (dataset == Dataset::text) {
    if (joined_by) throw Error("--rows-joined-by needs --dataset wikitext2 or ptb: text has no rows");
    return std::string(raw);
  }
  const std::string between = joined_by.value_or(dataset == Dataset::ptb ? " " : "\n\n");
  std::string text;
  text.reserve(raw.size() + raw.size() / 8);
  bool first = true;
  while (!raw.empty()) {
    const size_t newline = raw.find('\n');
    const std::string_view line = raw.substr(0, newline == raw.npos ? raw.npos : newline + 1);
    raw.remove_prefix(line.size());
    if (!first) text += between;
    first = false;
    const std::string_view content = trimmed(line, kWhiteSpace);
    if (dataset == Dataset::ptb) {
      text += content;
    } else if (!content.empty()) {
      text += line;
    }
  }
  return text;
}

}  // namespace ballast
