#include "engine/io/tokenizer_bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <deque>

#include "engine/io/json.h"
#include "engine/io/tokenizer_bpe_merges.h"
#include "engine/io/tokenizer_utf8.h"
#include "engine/io/tokenizer_words.h"
#include "kernels/check.h"

namespace ballast {
namespace {

constexpr int32_t kNone = -1;

/// GPT-2's alphabet, code point by byte: printable Latin-1 characters stand for themselves, the other bytes
/// in ascending order for U+0100, U+0101, …
std::array<char32_t, 256> make_alphabet() {
  std::array<char32_t, 256> alphabet;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

/// The bytes that a token in the alphabet's spelling stands for; its own if it has a character outside the
/// alphabet.
std::string bytes_of(const std::string& token) {
  static const std::array<int16_t, 0x144> byte_of = [] {
    std::array<int16_t, 0x144> table;
    table.fill(kNone);
    const std::array<char32_t, 256> alphabet = make_alphabet();
    for (size_t byte = 0; byte < 256; ++byte) table[alphabet[byte]] = static_cast<int16_t>(byte);
    return table;
  }();
  std::string bytes;
  for (std::string_view rest = token; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    const bool known = step.kind == Utf8Kind::kValid && step.code_point < byte_of.size();
    if (!known || byte_of[step.code_point] == kNone) return token;
    bytes += static_cast<char>(byte_of[step.code_point]);
    rest.remove_prefix(step.length);
  }
  return bytes;
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(BpeDescription description, const TokenizerSettings& settings);

  std::vector<int32_t> encode(std::string_view text, bool add_special) const override;
  std::string_view token_bytes(int32_t id) const override {
    return has(id) ? bytes_[id] : std::string_view();
  }
  bool is_special(int32_t id) const override { return has(id) && special_[id]; }
  int64_t vocabulary_size() const override { return static_cast<int64_t>(bytes_.size()); }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }

 private:
  friend class BpeEncoder;

  bool has(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < bytes_.size(); }
  void put(const std::string& token, int32_t id, std::string bytes);
  void read_vocabulary();
  void read_merges();
  void read_added(const TokenizerSettings& settings);
  void read_ends(const TokenizerSettings& settings);
  std::optional<int32_t> id_of(const std::string& token) const;
  int32_t required_id(const std::string& token, const char* name) const;

  BpeDescription description_;                    // its lists are emptied once read
  std::unordered_map<std::string, int32_t> ids_;  // by spelling; emptied likewise
  std::vector<std::string> bytes_;                // by id
  std::vector<bool> used_, special_;              // by id
  std::array<int32_t, 256> byte_ids_;
  BpeMerges merges_;
  std::unordered_map<std::string_view, int32_t> whole_words_;  // ignore_merges only; views into bytes_
  std::unique_ptr<AddedTokenSplitter> splitter_;
  std::optional<int32_t> unknown_, bos_, eos_;
  bool prepends_bos_ = false;
};

/// One call of encode(): appends the ids of stretches of text to `ids`.
class BpeEncoder {
 public:
  BpeEncoder(const BpeTokenizer& tokenizer, size_t text_size, std::vector<int32_t>& ids)
      : tokenizer_(tokenizer),
        ids_(ids),
        cache_(std::bit_ceil(std::clamp<size_t>(text_size / 8, 16, 1 << 15))) {}

  /// `text` must outlive the encoder.
  void append(std::string_view text);

 private:
  /// Where the ids of a word are that occurred before.
  struct Seen {
    std::string_view word;
    size_t begin, count;
  };

  void append_word(std::string_view word);
  void merge_word(std::string_view word);

  const BpeTokenizer& tokenizer_;
  std::vector<int32_t>& ids_;
  std::vector<Seen> cache_;  // by hash; a newer word takes the place of an older one
  std::deque<std::string> prefixed_;
  std::vector<int32_t> symbols_;
  WordSplitter words_;
};

void BpeEncoder::append(std::string_view text) {
  if (tokenizer_.description_.add_prefix_space && !text.starts_with(' ')) {
    text = prefixed_.emplace_back(' ' + std::string(text));
  }
  if (!tokenizer_.description_.cut_words) return append_word(text);
  while (!text.empty()) {
    const size_t valid = valid_utf8_prefix(text);
    words_.start(text.substr(0, valid));
    for (std::string_view word; words_.next(word);) append_word(word);
    text.remove_prefix(valid);
    if (text.empty()) break;
    // The pattern knows characters only: bytes of no character stand alone.
    const size_t length = utf8_step(text).length;
    for (size_t i = 0; i < length; ++i) merge_word(text.substr(i, 1));
    text.remove_prefix(length);
  }
}

void BpeEncoder::append_word(std::string_view word) {
  constexpr size_t kLongestCached = 64;
  if (word.size() == 1 || word.size() > kLongestCached) return merge_word(word);
  Seen& seen = cache_[std::hash<std::string_view>()(word) & (cache_.size() - 1)];
  if (seen.word == word) {
    for (size_t i = 0; i < seen.count; ++i) ids_.push_back(ids_[seen.begin + i]);
    return;
  }
  const size_t begin = ids_.size();
  merge_word(word);
  seen = {word, begin, ids_.size() - begin};
}

void BpeEncoder::merge_word(std::string_view word) {
  if (tokenizer_.description_.ignore_merges) {
    const auto whole = tokenizer_.whole_words_.find(word);
    if (whole != tokenizer_.whole_words_.end()) return ids_.push_back(whole->second);
  }
  symbols_.clear();
  bool after_unknown = false;
  for (const char c : word) {
    const int32_t id = tokenizer_.byte_ids_[static_cast<uint8_t>(c)];
    if (id == kNone && !tokenizer_.unknown_) {
      throw Error(str("text: the vocabulary has no token for byte ",
                      static_cast<int>(static_cast<uint8_t>(c)), " (in ", shown(word), ")"));
    }
    if (id != kNone) {
      symbols_.push_back(id);
    } else if (!after_unknown || !tokenizer_.description_.fuse_unknown) {
      symbols_.push_back(*tokenizer_.unknown_);
    }
    after_unknown = id == kNone;
  }
  tokenizer_.merges_.apply(symbols_);
  ids_.insert(ids_.end(), symbols_.begin(), symbols_.end());
}

BpeTokenizer::BpeTokenizer(BpeDescription description, const TokenizerSettings& settings)
    : description_(std::move(description)) {
  description_.add_prefix_space = settings.add_prefix_space.value_or(description_.add_prefix_space);
  read_vocabulary();
  read_merges();
  read_added(settings);
  if (description_.unknown) unknown_ = required_id(*description_.unknown, "unk_token");
  read_ends(settings);
  if (description_.ignore_merges) {
    // What BPE may produce is what the vocabulary spells in the alphabet; added tokens were looked for
    // before.
    for (const auto& [token, id] : description_.vocabulary) {
      if (bytes_of(token) == bytes_[id]) whole_words_.emplace(bytes_[id], id);
    }
  }
  description_.vocabulary = {};
  ids_ = {};
}

void BpeTokenizer::put(const std::string& token, int32_t id, std::string bytes) {
  if (static_cast<size_t>(id) >= bytes_.size()) {
    bytes_.resize(id + 1);
    used_.resize(id + 1);
    special_.resize(id + 1);
  }
  if (used_[id]) {
    throw Error(str(description_.vocabulary_file, ": token ", shown(token), " has id ", id, ", which ",
                    shown(bytes_[id]), " has already"));
  }
  used_[id] = true;
  bytes_[id] = std::move(bytes);
  ids_.emplace(token, id);
}

void BpeTokenizer::read_vocabulary() {
  ids_.reserve(description_.vocabulary.size());
  for (const auto& [token, id] : description_.vocabulary) put(token, id, bytes_of(token));
  const std::array<char32_t, 256> alphabet = make_alphabet();
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string character;
    append_utf8(character, alphabet[byte]);
    byte_ids_[byte] = id_of(character).value_or(kNone);
  }
}

void BpeTokenizer::read_merges() {
  merges_.reserve(description_.merges.size());
  uint32_t rank = 0;
  for (const auto& merge : description_.merges) {
    const auto id = [&](const std::string& token) {
      const std::optional<int32_t> found = id_of(token);
      if (!found) {
        throw Error(str(description_.merges_file, ": merge ", rank + 1, " (", shown(merge.first), " ",
                        shown(merge.second), ") needs token ", shown(token), ", which the vocabulary lacks"));
      }
      return *found;
    };
    merges_.add(id(merge.first), id(merge.second), rank, id(merge.first + merge.second));
    ++rank;
  }
  description_.merges = {};
}

void BpeTokenizer::read_added(const TokenizerSettings& settings) {
  AddedTokenSet all;
  for (AddedToken& token : description_.added) all.merge(std::move(token));
  for (const AddedToken& token : settings.added.tokens()) all.merge(token);
  description_.added = {};
  std::vector<AddedToken> known;
  for (AddedToken token : all.tokens()) {
    const std::optional<int32_t> id = id_of(token.content);
    if (!id && !token.id) continue;  // a setting names a token that the vocabulary does without
    if (!id) {
      put(token.content, *token.id, token.content);
    } else if (token.id && token.id != id) {
      throw Error(str(description_.vocabulary_file, ": added token ", shown(token.content), " has id ",
                      *token.id, ", but the vocabulary gives it ", *id));
    } else if (bytes_[*id] != token.content) {
      throw Error(str(description_.vocabulary_file, ": added token ", shown(token.content),
                      " would be matched literally, but in the vocabulary it stands for the text ",
                      shown(bytes_[*id])));
    }
    token.id = id ? id : token.id;
    special_[*token.id] = token.special;
    known.push_back(std::move(token));
  }
  splitter_ = std::make_unique<AddedTokenSplitter>(known);
}

void BpeTokenizer::read_ends(const TokenizerSettings& settings) {
  const auto find_end = [&](const std::optional<std::string>& name, const char* what,
                            std::optional<int64_t> config_id) -> std::optional<int32_t> {
    if (name) return required_id(*name, what);
    if (settings.likely_bos_eos && id_of(*settings.likely_bos_eos)) return id_of(*settings.likely_bos_eos);
    if (config_id && *config_id >= 0 && *config_id < vocabulary_size())
      return static_cast<int32_t>(*config_id);
    return {};
  };
  const bool says = settings.add_bos && !settings.assumes_opt;
  if (!says && description_.decides_bos) {
    prepends_bos_ = description_.bos.has_value();
    bos_ = find_end(description_.bos ? description_.bos : settings.bos, "the token before the text",
                    settings.config_bos);
  } else {
    bos_ = find_end(settings.bos, "bos_token", settings.config_bos);
    prepends_bos_ = settings.add_bos.value_or(false) && bos_;
  }
  eos_ = find_end(settings.eos, "eos_token", settings.config_eos);
}

std::optional<int32_t> BpeTokenizer::id_of(const std::string& token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return {};
  return found->second;
}

int32_t BpeTokenizer::required_id(const std::string& token, const char* name) const {
  const std::optional<int32_t> id = id_of(token);
  if (!id) throw Error(str(description_.vocabulary_file, ": no token ", shown(token), ", which is ", name));
  return *id;
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool add_special) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 2);
  if (add_special && prepends_bos_) ids.push_back(*bos_);
  BpeEncoder encoder(*this, text.size(), ids);
  for (const TextPiece& piece : splitter_->split(text)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
    } else {
      encoder.append(piece.text);
    }
  }
  return ids;
}

}  // namespace

std::unique_ptr<Tokenizer> open_bpe(BpeDescription description, const TokenizerSettings& settings) {
  return std::make_unique<BpeTokenizer>(std::move(description), settings);
}

}  // namespace ballast
