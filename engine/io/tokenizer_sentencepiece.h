// Vocabularies made by sentencepiece (`tokenizer.model`).
#pragma once

#include <memory>
#include <string>

#include "engine/io/tokenizer.h"
#include "engine/io/tokenizer_settings.h"

namespace ballast {

/// What a model file says that the library does not tell.
struct SentencepieceFacts {
  bool adds_leading_space = true;
};

/// Checks the bytes of a model before the library sees them: lengths inside the file, pieces of sane size,
/// and a normalization table whose every look-up stays inside it (the library itself trusts that table).
/// Throws Error.
SentencepieceFacts check_sentencepiece_model(const std::string& model, const std::string& file);

/// `model` is the content of `file`, which is for messages. Text goes through the model's own normalization,
/// so only text that is normalized already comes back exactly. Differs from Hugging Face's converted
/// tokenizers in that every stretch between special tokens is a text of its own and so begins with the
/// model's leading space.
std::unique_ptr<Tokenizer> open_sentencepiece(const std::string& model, const std::string& file,
                                              const TokenizerSettings& settings);

}  // namespace ballast
