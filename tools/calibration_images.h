// Calibration data for image classifiers.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"
#include "quantize/data.h"

namespace ballast {

/// `samples` images of a list, drawn by `seed`, in the list's order; all where it has no more. Error when `list` is
/// "self", or, with `exact`, when it has fewer.
std::vector<std::filesystem::path> chosen_images(const std::string& list, int64_t samples, bool exact,
                                                 uint64_t seed);

/// Each image in `views` views: as the model sees it, then random ones by `seed` (ImageReader::read_views). Error when
/// an image cannot be read.
CalibrationTokens calibration_from_images(const Checkpoint& checkpoint, const nn::ModelFacts& facts,
                                          Backend& backend, const std::vector<std::filesystem::path>& files,
                                          int64_t views, uint64_t seed, const std::string& source);

}  // namespace ballast
