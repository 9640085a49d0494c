// A text file as one evaluation text, and fingerprints that say which files a figure belongs to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

/// 64-bit FNV-1a over 8-byte words in four lanes (not the byte-wise FNV: speed matters for weight files), as
/// 16 hexadecimal digits. Tells files apart; no protection against forgery.
class Fingerprint {
 public:
  void add(std::string_view bytes);
  std::string text() const;

 private:
  void add_word(uint64_t word);

  uint64_t lanes_[4] = {0xcbf29ce484222325u, 0x9ae16a3b2f90404fu, 0xc3a5c85c97cb3127u, 0xb492b66fbe98f273u};
  uint64_t words_ = 0;  ///< added so far
  uint64_t bytes_ = 0;
  std::string rest_;  ///< fewer than 8 bytes
};

std::string fingerprint(std::string_view bytes);
/// Of the files' contents in the order given. Error when one cannot be read.
std::string fingerprint_files(const std::vector<std::filesystem::path>& files);

}  // namespace ballast
