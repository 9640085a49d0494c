// Pixels as PyTorch holds them, [channels, height, width], as the values of a model's patches.
#pragma once

#include <span>

#include "engine/nn/model.h"

namespace ballast {

inline void fill_patches(const nn::ImageFacts& facts, const float* pixels, std::span<float> patches) {
  size_t next = 0;
  for (int64_t top = 0; top < facts.height; top += facts.patch_height)
    for (int64_t left = 0; left < facts.width; left += facts.patch_width)
      for (int64_t c = 0; c < facts.channels; ++c)
        for (int64_t y = 0; y < facts.patch_height; ++y)
          for (int64_t x = 0; x < facts.patch_width; ++x)
            patches[next++] = pixels[(c * facts.height + top + y) * facts.width + left + x];
}

}  // namespace ballast
