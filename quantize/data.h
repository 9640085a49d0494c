// Calibration tokens: windows of a text, text that the float model writes itself, or images.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/io/tokenizer.h"
#include "engine/nn/model.h"

namespace ballast {

/// Images, prepared for the model: each is a sample of as many tokens as the model makes of it.
struct CalibrationImages {
  int64_t values = 0;  ///< of one image's patches; 0: there are none
  int64_t views = 1;   ///< samples that are cut from one picture
  /// Fills the values of one image, as nn::BatchRows wants them.
  std::function<void(int64_t sample, std::span<float> patches)> write;

  explicit operator bool() const { return values > 0; }
};

struct CalibrationTokens {
  int64_t samples = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;  ///< [samples, length]; empty with images
  std::string source;        ///< "self", or the file's name
  CalibrationImages images;  ///< not kept in a journal: they are read again

  /// The first samples, at most so many.
  CalibrationTokens first(int64_t count) const;
  /// 64-bit FNV-1a of the ids or image values: two runs with the same hash saw the same data.
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
