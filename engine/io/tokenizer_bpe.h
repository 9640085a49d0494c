// Byte-level byte-pair encoding (GPT-2, OPT): every byte is a character of a fixed alphabet, words are cut by
// GPT-2's pattern, and inside a word the adjacent pair that comes first in the merge list is joined until
// none is left.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/tokenizer_files.h"
#include "engine/io/tokenizer_settings.h"

namespace ballast {

/// Contents of a byte-level vocabulary's files. Tokens are still in the alphabet's spelling.
struct BpeDescription {
  std::string vocabulary_file, merges_file;  // for messages
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;  // the earlier, the sooner joined
  std::vector<AddedToken> added;
  bool add_prefix_space =
      false;                   // a text (and what follows an added token) that starts with no space gets one
  bool cut_words = true;       // false: the text between added tokens is one word
  bool ignore_merges = false;  // a word that is itself a token stays whole
  bool fuse_unknown = false;   // a row of unknown bytes is one unknown token
  std::optional<std::string> unknown;
  bool decides_bos = false;  // a post-processor says whether a token goes before the text, and which
  std::optional<std::string> bos;
};

/// True if a `tokenizer.json` cuts its text at the byte level.
bool is_byte_level(const nlohmann::json& root);

/// All of these throw Error with file, field, expected and got.
BpeDescription parse_tokenizer_json(const nlohmann::json& root, const std::string& file);
BpeDescription parse_vocab_and_merges(const TokenizerFiles& files);
std::unique_ptr<Tokenizer> open_bpe(BpeDescription description, const TokenizerSettings& settings);

}  // namespace ballast
