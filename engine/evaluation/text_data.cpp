#include "engine/evaluation/text_data.h"

#include <cstring>
#include <fstream>

#include "kernels/check.h"

namespace ballast {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";

std::string_view stripped(std::string_view line) {
  const size_t first = line.find_first_not_of(kWhiteSpace);
  if (first == std::string_view::npos) return {};
  return line.substr(first, line.find_last_not_of(kWhiteSpace) + 1 - first);
}

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
    const std::string_view content = stripped(line);
    if (dataset == Dataset::ptb) {
      text += content;
    } else if (!content.empty()) {
      text += line;
    }
  }
  return text;
}

void Fingerprint::add_word(uint64_t word) {
  uint64_t& lane = lanes_[words_++ % 4];
  lane = (lane ^ word) * 0x100000001b3u;
  lane ^= lane >> 29;  // without it, high bits of a word would never reach low bits of the lane
}

void Fingerprint::add(std::string_view bytes) {
  bytes_ += bytes.size();
  if (!rest_.empty()) {
    const size_t taken = std::min(bytes.size(), 8 - rest_.size());
    rest_ += bytes.substr(0, taken);
    bytes.remove_prefix(taken);
    if (rest_.size() < 8) return;
    uint64_t word;
    std::memcpy(&word, rest_.data(), 8);
    rest_.clear();
    add_word(word);
  }
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    add_word(word);
  }
  rest_ += bytes;
}

std::string Fingerprint::text() const {
  Fingerprint last = *this;
  if (!last.rest_.empty()) {
    last.rest_.resize(8, '\0');
    uint64_t word;
    std::memcpy(&word, last.rest_.data(), 8);
    last.add_word(word);
  }
  uint64_t hash = last.bytes_;
  for (uint64_t lane : last.lanes_) {
    hash = (hash ^ lane) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  std::string digits;
  for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[(hash >> shift) & 15];
  return digits;
}

std::string fingerprint(std::string_view bytes) {
  Fingerprint hash;
  hash.add(bytes);
  return hash.text();
}

std::string fingerprint_files(const std::vector<std::filesystem::path>& files) {
  Fingerprint hash;
  std::vector<char> buffer(size_t(1) << 20);
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    while (file) {
      file.read(buffer.data(), std::streamsize(buffer.size()));
      hash.add({buffer.data(), size_t(file.gcount())});
    }
    if (!file.eof()) throw Error(str(path.string(), ": cannot be read"));
  }
  return hash.text();
}

}  // namespace ballast
