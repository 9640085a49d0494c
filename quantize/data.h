// Calibration tokens: windows of a text, or text that the float model writes itself.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/io/tokenizer.h"
#include "engine/nn/model.h"

namespace ballast {

struct CalibrationTokens {
  int64_t samples = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;  ///< [samples, length]
  std::string source;        ///< "self", or the file's name

  /// 64-bit FNV-1a of the ids: two runs with the same hash saw the same data.
  uint64_t hash() const;
};

/// Random windows of the tokenized text (no special token in front, as most windows of a corpus have none).
/// Error when the text is shorter than one window.
CalibrationTokens calibration_from_text(const std::string& text, const std::string& source,
                                        const Tokenizer& tokenizer, int64_t samples, int64_t length,
                                        uint64_t seed);

/// Samples from the model at temperature 1, starting from its beginning-of-text token; no data needed.
/// `progress` is told the tokens done of all.
CalibrationTokens calibration_from_model(Backend& backend, nn::Model& model, int64_t usable_vocab,
                                         int64_t samples, int64_t length, uint64_t seed,
                                         const std::function<void(int64_t done, int64_t all)>& progress);

}  // namespace ballast
