#include "engine/io/tokenizer_sentencepiece.h"

#include <sentencepiece_processor.h>

#include <charconv>

#include "engine/io/json.h"
#include "kernels/check.h"

namespace ballast {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, which stands for a space inside pieces

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    const bool mark = piece.substr(at).starts_with(kSpaceMark);
    text += mark ? ' ' : piece[at];
    at += mark ? kSpaceMark.size() : 1;
  }
  return text;
}

class SentencepieceTokenizer final : public Tokenizer {
 public:
  SentencepieceTokenizer(const std::string& model, const std::string& file,
                         const TokenizerSettings& settings);

  std::vector<int32_t> encode(std::string_view text, bool add_special) const override;
  std::string_view token_bytes(int32_t id) const override {
    return has(id) ? bytes_[id] : std::string_view();
  }
  bool is_special(int32_t id) const override { return has(id) && special_[id]; }
  int64_t vocabulary_size() const override { return static_cast<int64_t>(bytes_.size()); }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  bool adds_leading_space() const override { return facts_.adds_leading_space; }

 private:
  bool has(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < bytes_.size(); }
  void read_piece(int32_t id);
  std::optional<int32_t> id_of(const std::string& token) const;
  std::optional<int32_t> end_id(const std::optional<std::string>& name, int model_id) const;
  void read_added(const TokenizerSettings& settings);

  std::string file_;
  SentencepieceFacts facts_;
  sentencepiece::SentencePieceProcessor processor_;
  std::vector<std::string> bytes_;
  std::vector<bool> special_;
  std::unique_ptr<AddedTokenSplitter> splitter_;
  std::optional<int32_t> bos_, eos_;
  bool prepends_bos_ = false;
};

SentencepieceTokenizer::SentencepieceTokenizer(const std::string& model, const std::string& file,
                                               const TokenizerSettings& settings)
    : file_(file), facts_(check_sentencepiece_model(model, file)) {
  const auto status = processor_.LoadFromSerializedProto(model);
  if (!status.ok()) throw Error(str(file, ": sentencepiece cannot open it: ", shown(status.ToString())));
  bytes_.resize(processor_.GetPieceSize());
  special_.resize(bytes_.size());
  for (int32_t id = 0; has(id); ++id) read_piece(id);
  read_added(settings);
  bos_ = end_id(settings.bos, processor_.bos_id());
  eos_ = end_id(settings.eos, processor_.eos_id());
  prepends_bos_ = settings.add_bos.value_or(true) && bos_;
}

void SentencepieceTokenizer::read_piece(int32_t id) {
  const std::string& piece = processor_.IdToPiece(id);
  special_[id] = processor_.IsControl(id) || processor_.IsUnknown(id);
  if (processor_.IsByte(id)) {  // <0x0A>
    unsigned byte = 256;
    if (piece.size() == 6) std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
    if (byte > 255)
      throw Error(str(file_, ": piece ", id, ": expected a byte such as <0x0A>, got ", shown(piece)));
    bytes_[id] = std::string(1, static_cast<char>(byte));
  } else {
    bytes_[id] = special_[id] ? piece : with_spaces(piece);
  }
}

std::optional<int32_t> SentencepieceTokenizer::id_of(const std::string& token) const {
  const int32_t id = processor_.PieceToId(token);
  if (id >= 0 && id < processor_.GetPieceSize() && processor_.IdToPiece(id) == token) return id;
  return {};
}

std::optional<int32_t> SentencepieceTokenizer::end_id(const std::optional<std::string>& name,
                                                      int model_id) const {
  if (!name) return has(model_id) ? std::optional<int32_t>(model_id) : std::nullopt;
  if (const auto id = id_of(*name)) return id;
  for (size_t id = processor_.GetPieceSize(); id < bytes_.size(); ++id) {
    if (bytes_[id] == *name) return static_cast<int32_t>(id);
  }
  throw Error(str(file_, ": no piece ", shown(*name), ", which tokenizer_config.json names"));
}

void SentencepieceTokenizer::read_added(const TokenizerSettings& settings) {
  std::vector<AddedToken> known;
  for (AddedToken token : settings.added.tokens()) {
    const std::optional<int32_t> id = id_of(token.content);
    if (!id && !token.id) continue;  // a setting names a token that the model does without
    if (id && token.id && token.id != id) {
      throw Error(str(file_, ": added token ", shown(token.content), " has id ", *token.id,
                      ", but the model gives it ", *id));
    }
    if (!id) {
      if (static_cast<size_t>(*token.id) >= bytes_.size()) {
        bytes_.resize(*token.id + 1);
        special_.resize(*token.id + 1);
      }
      if (!bytes_[*token.id].empty()) {
        throw Error(str(file_, ": added token ", shown(token.content), " has id ", *token.id, ", which ",
                        shown(bytes_[*token.id]), " has already"));
      }
      bytes_[*token.id] = token.content;
    }
    token.id = id ? id : token.id;
    special_[*token.id] = token.special;
    known.push_back(std::move(token));
  }
  splitter_ = std::make_unique<AddedTokenSplitter>(known);
}

std::vector<int32_t> SentencepieceTokenizer::encode(std::string_view text, bool add_special) const {
  std::vector<int32_t> ids;
  if (add_special && prepends_bos_) ids.push_back(*bos_);
  std::vector<int> piece_ids;
  for (const TextPiece& piece : splitter_->split(text)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    const auto status = processor_.Encode(piece.text, &piece_ids);
    if (!status.ok())
      throw Error(str(file_, ": sentencepiece cannot encode a text: ", shown(status.ToString())));
    ids.insert(ids.end(), piece_ids.begin(), piece_ids.end());
  }
  return ids;
}

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const std::string& model, const std::string& file,
                                              const TokenizerSettings& settings) {
  return std::make_unique<SentencepieceTokenizer>(model, file, settings);
}

}  // namespace ballast
