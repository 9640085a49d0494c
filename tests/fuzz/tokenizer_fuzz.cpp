// Tokenizer files from memory, then a text through the tokenizer and back.
// An input is up to six sections with byte 0x1E between: text, vocab.json, merges.txt, tokenizer.json,
// tokenizer_config.json, added_tokens.json. An empty section is an absent file.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/io/tokenizer_files.h"
#include "kernels/check.h"

namespace {

using namespace ballast;

std::string without_spaces(std::string text) {
  std::erase(text, ' ');
  return text;
}

/// Whether the files can make a tokenizer that loses something on purpose: white space beside a token,
/// unknown bytes. A backslash could hide a key.
bool may_lose(std::string_view file) {
  return file.find("strip") != file.npos || file.find("unk_token") != file.npos ||
         file.find('\\') != file.npos;
}

void require(bool condition) {
  if (!condition) std::abort();
}

void round_trip(const Tokenizer& tokenizer, const std::string& text, bool lossless) {
  std::vector<int32_t> ids;
  try {
    ids = tokenizer.encode(text, false);
  } catch (const Error&) {
    return;  // a byte for which the vocabulary has no token
  }
  for (const int32_t id : ids) require(id >= 0 && id < tokenizer.vocabulary_size());
  // A tokenizer may add a space before each stretch of text.
  const std::string back = tokenizer.decode(ids, false);
  if (lossless) require(without_spaces(back) == without_spaces(text) && back.size() >= text.size());
  StreamDecoder stream(tokenizer, false);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.push(id);
  require(streamed + stream.flush() == to_valid_utf8(back));
  require(tokenizer.encode(text).size() >= ids.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::array<std::string, 6> sections;
  size_t section = 0;
  for (size_t i = 0; i < size; ++i) {
    if (data[i] == 0x1E && section + 1 < sections.size()) {
      ++section;
    } else {
      sections[section] += static_cast<char>(data[i]);
    }
  }
  const auto file = [&](size_t i) { return sections[i].empty() ? std::nullopt : std::optional(sections[i]); };
  TokenizerFiles files;
  files.vocab_json = file(1);
  files.merges_txt = file(2);
  files.tokenizer_json = file(3);
  files.tokenizer_config = file(4);
  files.added_tokens = file(5);
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = open_tokenizer(files);
  } catch (const Error& error) {
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
    return 0;
  }
  const bool lossless = std::none_of(sections.begin() + 1, sections.end(), may_lose);
  round_trip(*tokenizer, sections[0], lossless);
  return 0;
}
