// Resampling as Pillow does it, bit for bit.
//
// A pass makes each output pixel from the input pixels under its filter, widened by the scale where the image shrinks:
//   out[i] = clamp((2^21 + Σ_j k[i][j] · in[j]) >> 22),  k[i][j] = round(2^22 · f((j + 1/2 − c) / s) / Σ_j f),
//   c = (i + 1/2) · in/out,  s = max(1, in/out)
// first along rows, then along columns, with 8 bits in between (Pillow, src/libImaging/Resample.c).
#pragma once

#include "engine/io/image.h"

namespace ballast {

/// Numbers are Pillow's, as preprocessor_config.json has them.
enum class Resampling : uint8_t { lanczos = 1, bilinear = 2, bicubic = 3 };

/// A part of an image, within it.
struct Window {
  int64_t left = 0, top = 0, width = 0, height = 0;
};

/// The window of the image resized to width x height.
Image resize(const Image& image, int64_t width, int64_t height, Resampling filter, const Window& window);

}  // namespace ballast
