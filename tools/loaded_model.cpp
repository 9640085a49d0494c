#include "tools/loaded_model.h"

#include <chrono>

#include "models/registry.h"
#include "tools/console.h"

namespace ballast {

LoadedModel load(const std::filesystem::path& folder, Backend& backend, WithTokenizer with_tokenizer) {
  const auto start = std::chrono::steady_clock::now();
  LoadedModel loaded;
  loaded.checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(folder));
  if (with_tokenizer == WithTokenizer::yes && reads_images(*loaded.checkpoint))
    throw Error(
        str(folder.string(), ": takes images and no text; `ballast classify` and `ballast evaluate` run it"));
  // The tokenizer first: it is small, and a mistake in it should not cost the wait for the weights.
  if (with_tokenizer == WithTokenizer::yes) loaded.tokenizer = Tokenizer::open(folder);
  loaded.model = load_model(*loaded.checkpoint, backend);
  const nn::ModelFacts& facts = loaded.model->facts();
  if (with_tokenizer == WithTokenizer::unless_images && !facts.image)
    loaded.tokenizer = Tokenizer::open(folder);
  if (loaded.tokenizer && loaded.usable_vocab() > facts.vocab)
    throw Error(str(folder.string(), ": the tokenizer has ", loaded.usable_vocab(),
                    " tokens, expected at most the ", facts.vocab, " rows of the model's embedding"));
  for (int64_t block = 0; block < facts.layers; ++block) {
    loaded.model->block(block);
    check_interrupt();
  }
  loaded.checkpoint->check_intact();
  loaded.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return loaded;
}

}  // namespace ballast
