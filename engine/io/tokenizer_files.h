// A tokenizer's files as texts, so that a tokenizer can also be opened from memory.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "engine/io/tokenizer.h"

namespace ballast {

/// Largest id + 1 that a tokenizer may have. Bounds the memory that one large id in a small file can ask for.
inline constexpr int64_t kMaxVocabulary = int64_t{1} << 21;

/// Contents of the files; those that the folder lacks are empty optionals.
struct TokenizerFiles {
  std::string folder;  // goes before the file names in messages
  std::optional<std::string> tokenizer_json, vocab_json, merges_txt, sentencepiece_model;
  std::optional<std::string> tokenizer_config, special_tokens_map, added_tokens, config;

  /// Name of one of the files for messages.
  std::string path(std::string_view name) const;
};

/// Reads what `folder` carries. Throws Error on anything that is not a regular file of bounded size.
TokenizerFiles read_tokenizer_files(const std::filesystem::path& folder);

/// The tokenizer in `files`; Tokenizer::open() is read_tokenizer_files() and this.
std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerFiles& files);

}  // namespace ballast
