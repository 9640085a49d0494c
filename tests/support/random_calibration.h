// Calibration data that means nothing.
#pragma once

#include "quantize/data.h"
#include "tests/support/random.h"

namespace ballast::test {

inline CalibrationTokens random_tokens(int64_t samples, int64_t length, int64_t vocab, uint64_t seed = 7) {
  Random random(seed);
  CalibrationTokens tokens{samples, length, {}, "random", {}};
  for (int64_t i = 0; i < samples * length; ++i) tokens.ids.push_back(int32_t(random.below(vocab)));
  return tokens;
}

inline CalibrationTokens random_images(const nn::ImageFacts& facts, int64_t samples) {
  CalibrationTokens tokens{samples, facts.tokens, {}, "random", {}};
  tokens.images = {.values = facts.patches() * facts.patch_values(),
                   .write = [](int64_t sample, std::span<float> patches) {
                     Random random(uint64_t(100 + sample));
                     for (float& value : patches) value = random.uniform(-2, 2);
                   }};
  return tokens;
}

}  // namespace ballast::test
