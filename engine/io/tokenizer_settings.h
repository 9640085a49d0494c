// What the small files beside a vocabulary say: which tokens are special, and what goes before a text.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/io/tokenizer_added.h"
#include "engine/io/tokenizer_files.h"

namespace ballast {

struct TokenizerSettings {
  std::optional<bool> add_bos, add_prefix_space;
  std::optional<std::string> bos, eos;            // contents, which the vocabulary must have
  std::optional<std::string> likely_bos_eos;      // the class's default, used if the vocabulary has it
  std::optional<int64_t> config_bos, config_eos;  // ids in config.json
  std::optional<int64_t> model_vocabulary;        // rows of the embedding table
  bool assumes_opt = false;                       // add_bos and bos are OPT's because nothing says otherwise
  AddedTokenSet added;
};

/// Reads tokenizer_config.json, or without it and for an OPT config.json what OPT's would say,
/// special_tokens_map.json, added_tokens.json and config.json. Throws Error naming file and field.
TokenizerSettings parse_tokenizer_settings(const TokenizerFiles& files);

/// `{"content": …, flags}`. `what` is file and field for messages.
AddedToken parse_added_token(const nlohmann::json& value, const std::string& what);

/// An id, checked to be an integer in [0, kMaxVocabulary). `token` is whose id it is, for the message.
int32_t parse_token_id(const nlohmann::json& value, const std::string& what, std::string_view token);

/// Member `key` if it is there and not null; Error if it has another type.
std::optional<bool> optional_bool(const nlohmann::json& object, const char* key, const std::string& what);
std::optional<std::string> optional_string(const nlohmann::json& object, const char* key,
                                           const std::string& what);

}  // namespace ballast
