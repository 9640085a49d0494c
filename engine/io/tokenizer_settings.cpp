#include "engine/io/tokenizer_settings.h"

#include <charconv>

#include "engine/io/json.h"
#include "kernels/check.h"

namespace ballast {
namespace {

using nlohmann::json;

constexpr size_t kMaxAddedTokenBytes = 256;  // bounds the work per byte of text
constexpr const char* kSpecialNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                         "pad_token", "cls_token", "mask_token"};

json parse_object(const std::optional<std::string>& text, const std::string& file) {
  if (!text) return json::object();
  json root = parse_json(*text, file);
  if (!root.is_object()) throw Error(str(file, ": expected an object, got ", shown_json(root)));
  return root;
}

/// A special token as these files write it: its content, or an object with the flags too.
AddedToken parse_special(const json& value, const std::string& what) {
  AddedToken token;
  if (value.is_string()) {
    token.content = value.get<std::string>();
    token.named_only = true;
  } else {
    token = parse_added_token(value, what);
  }
  token.special = true;
  return token;
}

/// bos_token, eos_token and so on of tokenizer_config.json or special_tokens_map.json.
void parse_special_tokens(const json& root, const std::string& file, TokenizerSettings& settings) {
  for (const std::string name : kSpecialNames) {
    const auto found = root.find(name);
    if (found == root.end() || found->is_null()) continue;
    AddedToken token = parse_special(*found, str(file, ": ", name));
    if (name == "bos_token") settings.bos = token.content;
    if (name == "eos_token") settings.eos = token.content;
    settings.added.merge(std::move(token));
  }
  for (const std::string name : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto found = root.find(name);
    if (found == root.end() || found->is_null()) continue;
    if (!found->is_structured())
      throw Error(str(file, ": ", name, " should be a list, got ", shown_json(*found)));
    for (const json& value : *found) {
      settings.added.merge(parse_special(value, str(file, ": ", name)));
    }
  }
}

/// added_tokens_decoder of tokenizer_config.json: {"id": token}.
void parse_added_tokens_decoder(const json& decoder, const std::string& what, TokenizerSettings& settings) {
  if (!decoder.is_object()) throw Error(str(what, " should be an object, got ", shown_json(decoder)));
  for (const auto& [key, value] : decoder.items()) {
    AddedToken token = parse_added_token(value, what);
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id >= kMaxVocabulary) {
      throw Error(str(what, ": expected an id from 0 to ", kMaxVocabulary - 1, ", got ", shown(key)));
    }
    token.id = static_cast<int32_t>(id);
    settings.added.merge(std::move(token));
  }
}

/// added_tokens.json: {"content": id}. A token is special if a setting names it, which is known later.
void parse_added_tokens_file(const TokenizerFiles& files, TokenizerSettings& settings) {
  const std::string file = files.path("added_tokens.json");
  const json root = parse_object(files.added_tokens, file);
  for (const auto& [content, id] : root.items()) {
    json token = {{"content", content}, {"normalized", true}};
    AddedToken added = parse_added_token(token, file);
    added.id = parse_token_id(id, file, content);
    if (settings.added.contains(content)) added.normalized = false;
    settings.added.merge(std::move(added));
  }
}

/// What an OPT checkpoint without tokenizer_config.json means.
void assume_opt(TokenizerSettings& settings) {
  settings.assumes_opt = true;
  settings.add_bos = true;
  settings.bos = settings.eos = "</s>";
  for (const char* content : {"</s>", "<pad>"}) {
    AddedToken token;
    token.content = content;
    token.special = token.named_only = true;
    settings.added.merge(std::move(token));
  }
}

std::optional<int64_t> integer_in(const json& root, const char* name) {
  const auto found = root.find(name);
  if (found == root.end()) return {};
  const json& value = found->is_array() && !found->empty() ? found->front() : *found;
  if (!value.is_number_integer()) return {};
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return {};
  return value.get<int64_t>();
}

}  // namespace

std::optional<bool> optional_bool(const json& object, const char* key, const std::string& what) {
  if (!json_find(object, key, what)) return {};
  return json_bool(object, key, what);
}

std::optional<std::string> optional_string(const json& object, const char* key, const std::string& what) {
  if (!json_find(object, key, what)) return {};
  return json_string(object, key, what);
}

int32_t parse_token_id(const json& value, const std::string& what, std::string_view token) {
  // An integer that is not negative is stored as unsigned, up to 2^64.
  if (!value.is_number_unsigned() || value.get<uint64_t>() >= uint64_t{kMaxVocabulary}) {
    throw Error(str(what, ": token ", shown(token), ": expected an id from 0 to ", kMaxVocabulary - 1,
                    ", got ", shown_json(value)));
  }
  return static_cast<int32_t>(value.get<uint64_t>());
}

AddedToken parse_added_token(const json& value, const std::string& what) {
  AddedToken token;
  token.content = json_string(value, "content", what);
  if (token.content.size() > kMaxAddedTokenBytes) {
    throw Error(str(what, ": token ", shown(token.content), " has ", token.content.size(),
                    " bytes; expected at most ", kMaxAddedTokenBytes));
  }
  token.single_word = json_bool(value, "single_word", what, false);
  token.lstrip = json_bool(value, "lstrip", what, false);
  token.rstrip = json_bool(value, "rstrip", what, false);
  token.special = json_bool(value, "special", what, false);
  token.normalized = json_bool(value, "normalized", what, !token.special);
  return token;
}

TokenizerSettings parse_tokenizer_settings(const TokenizerFiles& files) {
  TokenizerSettings settings;
  const json config = parse_object(files.config, files.path("config.json"));
  settings.config_bos = integer_in(config, "bos_token_id");
  settings.config_eos = integer_in(config, "eos_token_id");
  settings.model_vocabulary = integer_in(config, "vocab_size");

  const std::string file = files.path("tokenizer_config.json");
  const json root = parse_object(files.tokenizer_config, file);
  if (!files.tokenizer_config && optional_string(config, "model_type", files.path("config.json")) == "opt") {
    assume_opt(settings);
  }
  settings.add_prefix_space = optional_bool(root, "add_prefix_space", file);
  if (files.tokenizer_config) settings.add_bos = optional_bool(root, "add_bos_token", file);
  if (optional_bool(root, "add_eos_token", file) == true) {
    throw Error(str(file, ": add_eos_token is true; a token behind the text is not supported"));
  }
  const std::string tokenizer_class = optional_string(root, "tokenizer_class", file).value_or("");
  if (tokenizer_class.starts_with("GPT2Tokenizer")) settings.likely_bos_eos = "<|endoftext|>";
  parse_special_tokens(root, file, settings);
  if (const auto decoder = root.find("added_tokens_decoder"); decoder != root.end() && !decoder->is_null()) {
    parse_added_tokens_decoder(*decoder, str(file, ": added_tokens_decoder"), settings);
    return settings;  // newer files: the two below repeat it or are out of date
  }
  const std::string map_file = files.path("special_tokens_map.json");
  parse_special_tokens(parse_object(files.special_tokens_map, map_file), map_file, settings);
  parse_added_tokens_file(files, settings);
  return settings;
}

}  // namespace ballast
