// GPT-2's rule for cutting a text into words, which byte-pair encoding never crosses.
#pragma once

#include <memory>
#include <string_view>

namespace ballast {

/// Cuts well-formed UTF-8 by the pattern of GPT-2's published encoder:
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// with \s = White_Space, \p{L} and \p{N} of Unicode 16. The words cover the text. One splitter serves one
/// thread.
class WordSplitter {
 public:
  WordSplitter();
  ~WordSplitter();
  WordSplitter(const WordSplitter&) = delete;
  WordSplitter& operator=(const WordSplitter&) = delete;

  /// Starts on `text`, which must outlive the calls of next().
  void start(std::string_view text);
  /// Gives the next word; false at the end of the text. Throws RuntimeFailure if the matcher runs out of
  /// memory.
  bool next(std::string_view& word);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Whether `code_point` is a word character (\w of UTS #18).
bool is_word_character(char32_t code_point);

}  // namespace ballast
