// Tokens that are matched in the text before the vocabulary's own splitting.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ballast {

/// One such token. The flags mean what they mean in `tokenizer.json`.
struct AddedToken {
  std::string content;
  std::optional<int32_t> id;  // none: the vocabulary's
  bool single_word = false;   // matches only where no word character touches it
  bool lstrip = false;        // takes the white space before it along
  bool rstrip = false;        // takes the white space behind it along
  bool normalized = false;    // matched after those that are not
  bool special = false;
  bool named_only = false;  // a mere name: says that the token is special, nothing of its flags
};

/// Added tokens in the order in which they came, one per content.
class AddedTokenSet {
 public:
  /// Adds `token`, or gives its flags to the one of the same content. A token once special stays special, and
  /// an empty content is nothing.
  void merge(AddedToken token);
  bool contains(const std::string& content) const { return index_.count(content) != 0; }
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, size_t> index_;  // content -> position
};

/// A stretch of text; `id` is -1 where it is not an added token.
struct TextPiece {
  std::string_view text;
  int32_t id = -1;
};

/// Cuts texts at added tokens: leftmost, then longest match; those marked `normalized` only in what the
/// others left.
class AddedTokenSplitter {
 public:
  /// Every token must have its id.
  explicit AddedTokenSplitter(const std::vector<AddedToken>& tokens);
  AddedTokenSplitter(const AddedTokenSplitter&) = delete;
  AddedTokenSplitter& operator=(const AddedTokenSplitter&) = delete;

  /// The pieces of `text` in order. They cover it but for nothing; pieces of plain text are never empty.
  std::vector<TextPiece> split(std::string_view text) const;

 private:
  /// A byte trie over the tokens of one pass.
  struct Trie {
    std::array<bool, 256> starts{};                   // bytes that some token starts with
    std::unordered_map<uint64_t, uint32_t> children;  // node << 8 | byte -> node; the root is 0
    std::vector<const AddedToken*> ends{nullptr};     // by node: the token that ends there

    void insert(const AddedToken& token);
    const AddedToken* longest_match(std::string_view text) const;
  };

  static void split_with(const Trie& trie, std::string_view text, std::vector<TextPiece>& pieces);

  std::vector<AddedToken> tokens_;
  Trie first_, second_;
};

}  // namespace ballast
