#include "engine/io/tokenizer_files.h"

#include "engine/io/json.h"
#include "engine/io/tokenizer_bpe.h"
#include "engine/io/tokenizer_sentencepiece.h"
#include "engine/io/tokenizer_settings.h"
#include "kernels/check.h"

namespace ballast {
namespace {

constexpr uint64_t kMaxVocabularyBytes = uint64_t{256} << 20;
constexpr uint64_t kMaxSentencepieceBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxSettingsBytes = uint64_t{16} << 20;

std::optional<std::string> read_if_there(const std::filesystem::path& path, uint64_t max_bytes) {
  std::error_code error;
  // A dangling link counts as there, so that it is reported and not passed over.
  if (std::filesystem::symlink_status(path, error).type() == std::filesystem::file_type::not_found) return {};
  return read_file(path, max_bytes);
}

}  // namespace

std::string TokenizerFiles::path(std::string_view name) const {
  return folder.empty() ? std::string(name) : (std::filesystem::path(folder) / name).string();
}

TokenizerFiles read_tokenizer_files(const std::filesystem::path& folder) {
  TokenizerFiles files;
  files.folder = folder.string();
  files.tokenizer_json = read_if_there(folder / "tokenizer.json", kMaxVocabularyBytes);
  files.vocab_json = read_if_there(folder / "vocab.json", kMaxVocabularyBytes);
  files.merges_txt = read_if_there(folder / "merges.txt", kMaxVocabularyBytes);
  files.sentencepiece_model = read_if_there(folder / "tokenizer.model", kMaxSentencepieceBytes);
  files.tokenizer_config = read_if_there(folder / "tokenizer_config.json", kMaxSettingsBytes);
  files.special_tokens_map = read_if_there(folder / "special_tokens_map.json", kMaxSettingsBytes);
  files.added_tokens = read_if_there(folder / "added_tokens.json", kMaxSettingsBytes);
  files.config = read_if_there(folder / "config.json", kMaxSettingsBytes);
  return files;
}

std::unique_ptr<Tokenizer> open_tokenizer(const TokenizerFiles& files) {
  const TokenizerSettings settings = parse_tokenizer_settings(files);
  std::unique_ptr<Tokenizer> tokenizer;
  if (files.tokenizer_json) {
    const std::string name = files.path("tokenizer.json");
    const nlohmann::json root = parse_json(*files.tokenizer_json, name);
    if (files.sentencepiece_model && !is_byte_level(root)) {
      tokenizer = open_sentencepiece(*files.sentencepiece_model, files.path("tokenizer.model"), settings);
    } else {
      tokenizer = open_bpe(parse_tokenizer_json(root, name), settings);
    }
  } else if (files.vocab_json && files.merges_txt) {
    tokenizer = open_bpe(parse_vocab_and_merges(files), settings);
  } else if (files.sentencepiece_model) {
    tokenizer = open_sentencepiece(*files.sentencepiece_model, files.path("tokenizer.model"), settings);
  } else {
    throw Error(
        str(files.folder.empty() ? "." : files.folder,
            ": no tokenizer; expected tokenizer.json, vocab.json with merges.txt, or tokenizer.model"));
  }
  if (settings.model_vocabulary && tokenizer->vocabulary_size() > *settings.model_vocabulary) {
    throw Error(str(files.path("config.json"), ": vocab_size is ", *settings.model_vocabulary,
                    ", but the tokenizer beside it has ids up to ", tokenizer->vocabulary_size() - 1));
  }
  return tokenizer;
}

}  // namespace ballast
