// vocab.json with merges.txt, and tokenizer.json, into a BpeDescription.
#include "engine/io/json.h"
#include "engine/io/tokenizer_bpe.h"
#include "engine/io/tokenizer_utf8.h"
#include "kernels/check.h"

namespace ballast {
namespace {

using nlohmann::json;

/// Member `name` of an object, or null.
const json& member(const json& object, const char* name) {
  static const json null;
  if (!object.is_object()) return null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

std::string type_of(const json& component) {
  const json& type = member(component, "type");
  return type.is_string() ? type.get<std::string>() : "";
}

void parse_vocabulary(const json& vocabulary, const std::string& what, BpeDescription& description) {
  if (!vocabulary.is_object()) throw Error(str(what, ": expected an object, got ", shown_json(vocabulary)));
  if (vocabulary.empty()) throw Error(str(what, ": expected tokens, got none"));
  description.vocabulary.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    description.vocabulary.emplace_back(token, parse_token_id(id, what, token));
  }
}

/// Adds the merge "left right"; false if it is not of that form.
bool add_merge(std::string_view merge, BpeDescription& description) {
  const size_t space = merge.find(' ');
  if (space == 0 || space == std::string_view::npos || space + 1 == merge.size()) return false;
  if (merge.find(' ', space + 1) != std::string_view::npos) return false;
  description.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  return true;
}

void parse_merges_text(std::string_view text, BpeDescription& description) {
  const std::string& file = description.merges_file;
  if (const size_t valid = valid_utf8_prefix(text); valid != text.size()) {
    throw Error(str(file, ": not UTF-8 at byte ", valid));
  }
  size_t line_number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    if (!add_merge(line, description)) {
      throw Error(
          str(file, ": line ", line_number, ": expected two tokens with a space between, got ", shown(line)));
    }
  }
}

void parse_merges_list(const json& merges, BpeDescription& description) {
  const std::string what = description.merges_file + ": model.merges";
  if (!merges.is_array()) throw Error(str(what, ": expected a list, got ", shown_json(merges)));
  description.merges.reserve(merges.size());
  for (const json& merge : merges) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      description.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else if (!merge.is_string() || !add_merge(merge.get_ref<const std::string&>(), description)) {
      throw Error(str(what, "[", description.merges.size(), R"(]: expected "a b" or ["a", "b"], got )",
                      shown(merge.dump())));
    }
  }
}

/// The parts of a component that may be one or a Sequence of several.
std::vector<const json*> parts_of(const json& component, const char* list_name) {
  if (component.is_null()) return {};
  if (type_of(component) != "Sequence") return {&component};
  std::vector<const json*> parts;
  const json& list = member(component, list_name);
  if (list.is_array()) {
    for (const json& part : list) parts.push_back(&part);
  }
  return parts;
}

[[noreturn]] void unsupported(const std::string& what, const std::string& expected, const json& got) {
  throw Error(str(what, ": expected ", expected, ", got ", shown(got.dump())));
}

void require_absent_or_empty(const json& model, const char* name, const std::string& file) {
  const json& value = member(model, name);
  const bool nothing = value.is_null() || value == "" || value == false || value == 0.0;
  if (!nothing) unsupported(str(file, ": model.", name), "none", value);
}

void parse_model(const json& model, BpeDescription& description) {
  const std::string& file = description.vocabulary_file;
  if (!model.is_object()) throw Error(str(file, ": model: expected an object, got ", shown_json(model)));
  const json& type = member(model, "type");  // files of before 2021 have none
  if (!type.is_null() && type != "BPE") unsupported(str(file, ": model.type"), "\"BPE\"", type);
  for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    require_absent_or_empty(model, name, file);
  }
  description.unknown = optional_string(model, "unk_token", file + ": model");
  description.fuse_unknown = optional_bool(model, "fuse_unk", file + ": model").value_or(false);
  description.ignore_merges = optional_bool(model, "ignore_merges", file + ": model").value_or(false);
  parse_vocabulary(member(model, "vocab"), file + ": model.vocab", description);
  parse_merges_list(member(model, "merges"), description);
}

void parse_pre_tokenizer(const json& component, BpeDescription& description) {
  const std::string what = description.vocabulary_file + ": pre_tokenizer";
  const std::vector<const json*> parts = parts_of(component, "pretokenizers");
  if (parts.size() != 1 || type_of(*parts[0]) != "ByteLevel") unsupported(what, "ByteLevel alone", component);
  description.add_prefix_space = optional_bool(*parts[0], "add_prefix_space", what).value_or(true);
  description.cut_words = optional_bool(*parts[0], "use_regex", what).value_or(true);
}

/// Template `[{"SpecialToken": {"id": "</s>"}}, {"Sequence": {"id": "A"}}]`: the token before the sequence,
/// if any.
void parse_template(const json& single, const std::string& what, BpeDescription& description) {
  if (!single.is_array()) throw Error(str(what, ": expected a list, got ", shown_json(single)));
  description.decides_bos = true;
  bool seen_text = false;
  for (const json& item : single) {
    if (!member(item, "Sequence").is_null()) {
      if (seen_text) unsupported(what, "the text once", single);
      seen_text = true;
      continue;
    }
    const json& id = member(member(item, "SpecialToken"), "id");
    if (!id.is_string()) unsupported(what, "SpecialToken or Sequence", item);
    if (seen_text || description.bos) unsupported(what, "at most one token, before the text", single);
    description.bos = id.get<std::string>();
  }
  if (!seen_text) unsupported(what, "a Sequence", single);
}

void parse_post_processor(const json& component, BpeDescription& description) {
  const std::string what = description.vocabulary_file + ": post_processor";
  for (const json* part : parts_of(component, "processors")) {
    const std::string type = type_of(*part);
    if (type == "TemplateProcessing") {
      if (description.decides_bos) unsupported(what, "one TemplateProcessing", component);
      parse_template(member(*part, "single"), what + ".single", description);
    } else if (type != "ByteLevel") {  // that one only trims offsets
      unsupported(what, "ByteLevel or TemplateProcessing", *part);
    }
  }
}

}  // namespace

bool is_byte_level(const json& root) {
  for (const json* part : parts_of(member(root, "pre_tokenizer"), "pretokenizers")) {
    if (type_of(*part) == "ByteLevel") return true;
  }
  return false;
}

BpeDescription parse_tokenizer_json(const json& root, const std::string& file) {
  if (!root.is_object()) throw Error(str(file, ": expected an object, got ", shown_json(root)));
  BpeDescription description;
  description.vocabulary_file = description.merges_file = file;
  const json& normalizer = member(root, "normalizer");
  if (!normalizer.is_null()) unsupported(file + ": normalizer", "none", normalizer);
  parse_pre_tokenizer(member(root, "pre_tokenizer"), description);
  const json& decoder = member(root, "decoder");
  if (!decoder.is_null() && type_of(decoder) != "ByteLevel")
    unsupported(file + ": decoder", "ByteLevel", decoder);
  parse_post_processor(member(root, "post_processor"), description);
  parse_model(member(root, "model"), description);

  const json& added = member(root, "added_tokens");
  if (added.is_null()) return description;
  if (!added.is_array()) throw Error(str(file, ": added_tokens: expected a list, got ", shown_json(added)));
  for (const json& value : added) {
    const std::string what = str(file, ": added_tokens[", description.added.size(), "]");
    AddedToken token = parse_added_token(value, what);
    if (token.content.empty()) throw Error(str(what, ": content is empty"));
    token.id = parse_token_id(member(value, "id"), what, token.content);
    description.added.push_back(std::move(token));
  }
  return description;
}

BpeDescription parse_vocab_and_merges(const TokenizerFiles& files) {
  BpeDescription description;
  description.vocabulary_file = files.path("vocab.json");
  description.merges_file = files.path("merges.txt");
  parse_vocabulary(parse_json(*files.vocab_json, description.vocabulary_file), description.vocabulary_file,
                   description);
  parse_merges_text(*files.merges_txt, description);
  return description;
}

}  // namespace ballast
