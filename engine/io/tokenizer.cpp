#include "engine/io/tokenizer.h"

#include <algorithm>

#include "engine/io/tokenizer_files.h"
#include "engine/io/tokenizer_utf8.h"

namespace ballast {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Moves whole characters from `bytes` to the end of `text`, ill-formed ones as U+FFFD; what may still become
/// a character stays in `bytes`.
void take_characters(std::string& bytes, std::string& text) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const size_t valid = valid_utf8_prefix(rest);
    text += rest.substr(0, valid);
    rest.remove_prefix(valid);
    if (rest.empty()) break;
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8Kind::kTruncated) break;
    text += kReplacement;
    rest.remove_prefix(step.length);
  }
  bytes.erase(0, bytes.size() - rest.size());
}

/// Appends what `id` stands for. `drop_space` says, across calls, that the next space is encode()'s own.
void append_token(const Tokenizer& tokenizer, int32_t id, bool skip_special, bool& drop_space,
                  std::string& text) {
  const bool special = tokenizer.is_special(id);
  if (special && tokenizer.adds_leading_space() && tokenizer.bos_id() == id) drop_space = true;
  if (special && skip_special) return;
  std::string_view bytes = tokenizer.token_bytes(id);
  if (bytes.empty()) return;
  if (!special) {
    if (drop_space && bytes.front() == ' ') bytes.remove_prefix(1);
    drop_space = false;
  }
  text += bytes;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::open(const std::filesystem::path& folder) {
  return open_tokenizer(read_tokenizer_files(folder));
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  bool drop_space = false;
  for (const int32_t id : ids) append_token(*this, id, skip_special, drop_space, text);
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  append_token(tokenizer_, id, skip_special_, drop_space_, pending_);
  std::string text;
  take_characters(pending_, text);
  return text;
}

std::string StreamDecoder::flush() {
  const bool cut = !pending_.empty();
  pending_.clear();
  drop_space_ = false;
  return cut ? std::string(kReplacement) : std::string();
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string rest(bytes), text;
  take_characters(rest, text);
  if (!rest.empty()) text += kReplacement;
  return text;
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) { return (uint8_t(byte) & 0xC0) != 0x80; });
}

}  // namespace ballast
