// Random views of an image, for more calibration data than there are images.
#pragma once

#include <random>

#include "engine/io/image.h"

namespace ballast {

/// A part of the image, mirrored half of the time: its area is uniformly a share of kLeastArea to 1 of the image's, the
/// logarithm of its aspect ratio uniform between those of 3:4 and 4:3, its place uniform (Szegedy et al., Going Deeper
/// with Convolutions, arXiv 1409.4842, section 6, with smaller crops left out).
Image random_view(const Image& image, std::mt19937_64& random);

/// Puts a rectangle of `other`, of the same size, where it is in `image`: of the same proportions, its area uniformly 0 to 1
/// of the whole, its place uniform (CutMix, arXiv 1905.04899, with the area's law of its section 3.2 for alpha 1). What a
/// classifier makes of two things at once is something new to it, which another crop of the same image is not.
void mix_in(const Image& other, Image& image, std::mt19937_64& random);

/// Training uses views down to 8 % of an image. What calibration estimates is the usual picture, so ours stay near it.
inline constexpr double kLeastArea = 0.35;

}  // namespace ballast
