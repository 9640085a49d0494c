#include "engine/io/tokenizer_words.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>

#include "engine/io/tokenizer_utf8.h"
#include "kernels/check.h"

namespace ballast {
namespace {

// PCRE2's own classes are those of the Unicode version that it was built with (14 in 10.42). These ranges
// bring any version since then up to Unicode 16; where the library knows them already they change nothing.
constexpr const char* kNewerLetters =
    "\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"
    "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}"
    "\\x{1138E}\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}"
    "\\x{11F04}-\\x{11F10}\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}"
    "\\x{16100}-\\x{1611D}\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}"
    "\\x{1E030}-\\x{1E06D}\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}"
    "\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}";
constexpr const char* kNewerDigits =
    "\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}"
    "\\x{16130}-\\x{16139}\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1E4F0}-\\x{1E4F9}"
    "\\x{1E5F1}-\\x{1E5FA}";
constexpr const char* kNewerOtherNumbers = "\\x{1D2C0}-\\x{1D2D3}";
constexpr const char* kNewerMarks =
    "\\x{897}\\x{CF3}\\x{ECE}\\x{10D69}-\\x{10D6D}\\x{10EFC}-\\x{10EFF}\\x{11241}\\x{113B8}-\\x{113C0}"
    "\\x{113C2}\\x{113C5}\\x{113C7}-\\x{113CA}\\x{113CC}-\\x{113D0}\\x{113D2}\\x{113E1}-\\x{113E2}"
    "\\x{11F00}-\\x{11F01}\\x{11F03}\\x{11F34}-\\x{11F3A}\\x{11F3E}-\\x{11F42}\\x{11F5A}\\x{13440}"
    "\\x{13447}-\\x{13455}\\x{1611E}-\\x{1612F}\\x{1E08F}\\x{1E4EC}-\\x{1E4EF}\\x{1E5EE}-\\x{1E5EF}";
// Spelt out: PCRE2's \s with PCRE2_UCP has U+180E too, which is White_Space no longer.
constexpr const char* kSpace =
    "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

std::string words_pattern() {
  const std::string letter = str("\\p{L}", kNewerLetters);
  const std::string number = str("\\p{N}", kNewerDigits, kNewerOtherNumbers);
  return str("'(?:[stmd]|re|ve|ll)",                  //
             "| ?[", letter, "]++",                   //
             "| ?[", number, "]++",                   //
             "| ?[^", kSpace, letter, number, "]++",  //
             "|[", kSpace, "]+(?![^", kSpace, "])",   //
             "|[", kSpace, "]++");
}

std::string word_character_pattern() {
  // The ranges behind the joiners are circled and squared letters.
  return str("[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200C}\\x{200D}", kNewerLetters, kNewerMarks, kNewerDigits,
             "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}]");
}

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using Code = std::unique_ptr<pcre2_code, CodeDeleter>;

Code compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Anchored here and not when matching, which would rule the JIT code out.
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr));
  CHECK(code != nullptr, "PCRE2 error ", error, " at ", offset);
  // Without JIT (a kernel that forbids writable code pages) PCRE2 interprets: slower, with the same results.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

struct MatchDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using Match = std::unique_ptr<pcre2_match_data, MatchDeleter>;

Match make_match() {
  Match match(pcre2_match_data_create(1, nullptr));
  if (!match) throw RuntimeFailure("out of memory while splitting a text into words");
  return match;
}

}  // namespace

struct WordSplitter::State {
  const pcre2_code* code = nullptr;
  Match match = make_match();
  std::string_view text;
  size_t at = 0;
};

WordSplitter::WordSplitter() : state_(std::make_unique<State>()) {
  static const Code code = compile(words_pattern());
  state_->code = code.get();
}

WordSplitter::~WordSplitter() = default;

void WordSplitter::start(std::string_view text) {
  state_->text = text;
  state_->at = 0;
}

bool WordSplitter::next(std::string_view& word) {
  State& state = *state_;
  if (state.at == state.text.size()) return false;
  const int count = pcre2_match(state.code, reinterpret_cast<PCRE2_SPTR>(state.text.data()),
                                state.text.size(), state.at, PCRE2_NO_UTF_CHECK, state.match.get(), nullptr);
  // Every character is a letter, a number, a space or none of these, so there is always a match.
  if (count < 0) throw RuntimeFailure(str("PCRE2 error ", count, " while splitting a text into words"));
  const size_t end = pcre2_get_ovector_pointer(state.match.get())[1];
  CHECK(end > state.at);
  word = state.text.substr(state.at, end - state.at);
  state.at = end;
  return true;
}

bool is_word_character(char32_t code_point) {
  static const Code code = compile(word_character_pattern());
  std::string text;
  append_utf8(text, code_point);
  const Match match = make_match();
  return pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                     PCRE2_NO_UTF_CHECK, match.get(), nullptr) >= 0;
}

}  // namespace ballast
