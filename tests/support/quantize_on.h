// Quantizing small models on a backend, on random calibration data.
#pragma once

#include <filesystem>

#include "models/registry.h"
#include "quantize/quantizer.h"
#include "tests/support/random_calibration.h"

namespace ballast::test {

struct Quantized {
  QuantizeReport report;
  Checkpoint checkpoint;
};

struct QuantizeStop {};  ///< thrown by a run that was to stop

struct QuantizeRun {
  Recipe recipe;
  int64_t samples = 3;  ///< images, or texts of 16 tokens
  Journal* journal = nullptr;
  int64_t stop = INT64_MAX;    ///< after so many modules
  int64_t* resumed = nullptr;  ///< gets how many came from the journal
};

inline Quantized quantize_on(Backend& backend, const std::filesystem::path& source,
                             const std::filesystem::path& folder, const QuantizeRun& run) {
  constexpr int64_t kLength = 16;
  const Checkpoint checkpoint = Checkpoint::open(source);
  const auto model = load_model(checkpoint, backend);
  const nn::ModelFacts& facts = model->facts();
  const CalibrationTokens tokens = facts.image ? random_images(*facts.image, run.samples)
                                               : random_tokens(run.samples, kLength, facts.vocab);
  CheckpointWriter writer(folder, {.overwrite = true});
  QuantizeReport report = quantize_model({.source = checkpoint,
                                          .backend = backend,
                                          .model = *model,
                                          .recipe = run.recipe,
                                          .tokens = tokens,
                                          .writer = writer,
                                          .journal = run.journal,
                                          .progress = [&](const QuantizeProgress& at) {
                                            if (run.resumed) *run.resumed = at.resumed;
                                            if (at.done >= run.stop) throw QuantizeStop();
                                          }});
  return {std::move(report), Checkpoint::open(folder)};
}

/// `source` with its first blocks only.
inline std::filesystem::path shortened(const std::filesystem::path& source, int64_t blocks,
                                       const std::filesystem::path& folder) {
  const Checkpoint whole = Checkpoint::open(source);
  nlohmann::json config = whole.config();
  const auto all = config.at("num_hidden_layers").get<int64_t>();
  CheckpointWriter writer(folder, {.overwrite = true});
  for (const StoredTensor& tensor : whole.tensors()) {
    bool beyond = false;
    for (int64_t index = blocks; index < all; ++index)
      beyond |= tensor.name.find(str(".", index, ".")) != std::string::npos;
    if (!beyond) writer.copy(whole, tensor);
  }
  config["num_hidden_layers"] = blocks;
  writer.finish(config);
  return folder;
}

}  // namespace ballast::test
