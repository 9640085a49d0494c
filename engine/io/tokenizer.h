// Text <-> token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ballast {

/// One vocabulary. Implementations are immutable after opening and may be shared between threads.
class Tokenizer {
 public:
  /// Opens what the folder carries, in this order: `tokenizer.json`, `vocab.json` with `merges.txt`,
  /// `tokenizer.model` (sentencepiece; also preferred to a `tokenizer.json` that is not byte-level BPE).
  /// Throws Error naming file and field on anything malformed.
  static std::unique_ptr<Tokenizer> open(const std::filesystem::path& folder);

  virtual ~Tokenizer() = default;

  /// Ids of `text`, any bytes. `add_special` puts the model's beginning-of-text token first where the
  /// checkpoint's tokenizer does so (OPT: `</s>`, id 2). Special tokens written in the text are matched
  /// first. Throws Error if the vocabulary has no token for some byte of the text and no unknown token
  /// either.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special = true) const = 0;

  /// The bytes a token stands for; empty for an id without text (a special token gives its name).
  virtual std::string_view token_bytes(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;

  /// Largest id + 1. May be smaller than the model's embedding table, never larger.
  virtual int64_t vocabulary_size() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;

  /// True if encode() puts a space before every text (most sentencepiece models). decode() and StreamDecoder
  /// take it off again behind a beginning-of-text token, where the text is known to start; elsewhere it
  /// stays.
  virtual bool adds_leading_space() const { return false; }

  /// Concatenated bytes of `ids`: exactly the encoded text again (sentencepiece: the text as its model
  /// normalizes it). Ids outside the vocabulary stand for nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;
};

/// Turns a stream of ids into text without ever splitting a UTF-8 character: incomplete trailing bytes are
/// held back until they are complete, or replaced by U+FFFD when they cannot become a character any more.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}
  /// Text that became complete with `id`; may be empty. Always valid UTF-8.
  std::string push(int32_t id);
  /// What is still held back, as U+FFFD. Concatenating all pushes and the flush equals the whole text decoded
  /// at once.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string pending_;
  bool drop_space_ = false;  // the next byte, if a space, is the one that encode() added
};

/// `bytes` with every ill-formed UTF-8 sequence replaced by U+FFFD (maximal subpart practice, as Python's
/// "replace").
std::string to_valid_utf8(std::string_view bytes);
/// Characters (code points) of well-formed UTF-8.
int64_t count_characters(std::string_view text);

}  // namespace ballast
