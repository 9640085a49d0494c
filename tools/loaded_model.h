// A checkpoint opened, its model built and its tokenizer read.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/io/checkpoint.h"
#include "engine/io/tokenizer.h"
#include "engine/nn/model.h"

namespace ballast {

struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<nn::Model> model;      ///< borrows the checkpoint and the backend
  std::unique_ptr<Tokenizer> tokenizer;  ///< may be null, see WithTokenizer
  double seconds = 0;                    ///< that loading took

  /// Ids that stand for text: those from here on are rows of padding in the embedding.
  int64_t usable_vocab() const { return tokenizer->vocabulary_size(); }
};

enum class WithTokenizer : uint8_t { yes, no, unless_images };

/// All blocks are loaded. Error when a tokenizer is wanted and the model takes images, or when the tokenizer knows more
/// ids than the model has embeddings.
LoadedModel load(const std::filesystem::path& folder, Backend& backend,
                 WithTokenizer with_tokenizer = WithTokenizer::yes);

}  // namespace ballast
