#include "engine/io/tokenizer_added.h"

#include <algorithm>

#include "engine/io/tokenizer_utf8.h"
#include "engine/io/tokenizer_words.h"
#include "kernels/check.h"

namespace ballast {
namespace {

bool touches_word(std::string_view before, std::string_view after) {
  if (const char32_t c = last_code_point(before); c != 0 && is_word_character(c)) return true;
  if (after.empty()) return false;
  const Utf8Step step = utf8_step(after);
  return step.kind == Utf8Kind::kValid && is_word_character(step.code_point);
}

/// Bytes of white space at the end of `text`.
size_t space_at_end(std::string_view text) {
  size_t total = 0;
  while (true) {
    const char32_t c = last_code_point(text.substr(0, text.size() - total));
    if (!is_white_space(c)) return total;
    total += c < 0x80 ? 1 : c < 0x800 ? 2 : 3;
  }
}

/// Bytes of white space at the start of `text`.
size_t space_at_start(std::string_view text) {
  size_t total = 0;
  while (total < text.size()) {
    const Utf8Step step = utf8_step(text.substr(total));
    if (step.kind != Utf8Kind::kValid || !is_white_space(step.code_point)) break;
    total += step.length;
  }
  return total;
}

}  // namespace

void AddedTokenSet::merge(AddedToken token) {
  if (token.content.empty()) return;
  const auto [found, fresh] = index_.try_emplace(token.content, tokens_.size());
  if (fresh) {
    tokens_.push_back(std::move(token));
    return;
  }
  AddedToken& same = tokens_[found->second];
  if (token.named_only) {
    same.special = true;
    return;
  }
  if (!token.id) token.id = same.id;
  token.special |= same.special;
  same = std::move(token);
}

AddedTokenSplitter::AddedTokenSplitter(const std::vector<AddedToken>& tokens) : tokens_(tokens) {
  for (const AddedToken& token : tokens_) {
    CHECK(token.id, token.content);
    (token.normalized ? second_ : first_).insert(token);
  }
}

void AddedTokenSplitter::Trie::insert(const AddedToken& token) {
  starts[static_cast<uint8_t>(token.content.front())] = true;
  uint64_t node = 0;
  for (const char c : token.content) {
    const auto [child, fresh] = children.try_emplace(node << 8 | static_cast<uint8_t>(c), ends.size());
    if (fresh) ends.push_back(nullptr);
    node = child->second;
  }
  ends[node] = &token;
}

const AddedToken* AddedTokenSplitter::Trie::longest_match(std::string_view text) const {
  const AddedToken* longest = nullptr;
  uint64_t node = 0;
  for (const char c : text) {
    const auto child = children.find(node << 8 | static_cast<uint8_t>(c));
    if (child == children.end()) break;
    node = child->second;
    if (ends[node]) longest = ends[node];
  }
  return longest;
}

void AddedTokenSplitter::split_with(const Trie& trie, std::string_view text, std::vector<TextPiece>& pieces) {
  size_t done = 0;  // end of what is in pieces
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = nullptr;
    if (trie.starts[static_cast<uint8_t>(text[at])]) token = trie.longest_match(text.substr(at));
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->single_word && touches_word(text.substr(0, begin), text.substr(end))) continue;
    const size_t free = std::min(done, begin);
    if (token->lstrip) begin -= space_at_end(text.substr(free, begin - free));
    if (token->rstrip) end += space_at_start(text.substr(end));
    if (done < begin) pieces.push_back({text.substr(done, begin - done)});
    pieces.push_back({text.substr(begin, end - begin), *token->id});
    done = std::max(done, end);
  }
  if (done < text.size()) pieces.push_back({text.substr(done)});
}

std::vector<TextPiece> AddedTokenSplitter::split(std::string_view text) const {
  std::vector<TextPiece> pieces;
  if (!text.empty()) split_with(first_, text, pieces);
  if (second_.children.empty()) return pieces;
  std::vector<TextPiece> finer;
  for (const TextPiece& piece : pieces) {
    if (piece.id >= 0) {
      finer.push_back(piece);
    } else {
      split_with(second_, piece.text, finer);
    }
  }
  return finer;
}

}  // namespace ballast
