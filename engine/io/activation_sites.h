// Where a stored model rounds activations, and to which grids (kernels/encodings/activation.h).
//
// quantization_config: "activations": {"version": 1, "bits": what was asked for, "sites": {"<site>": {"grid": "affine",
// "bits": 8, "zero_point": 128}, …}}; a grid's other whole numbers are "shift" (twin_sign, twin_size) and "per_octave"
// (logarithm). The step of a site is a tensor, so that it is stored bit for bit:
//
//   <site>.scale   F32 [1]
//
// Sites are named like weights: <module>.input of a linear layer, <query, key or value module>.output,
// <attention>.probabilities. No published layout of quantized weights has them; a program that does not know them runs
// the same weights on activations as they are.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/io/checkpoint.h"
#include "engine/io/checkpoint_writer.h"
#include "kernels/encodings/activation.h"

namespace ballast {

using ActivationSites = std::map<std::string, ActivationGrid>;  ///< by name

/// Empty where the folder has none. Error naming site and field for anything unknown, out of range, or in only one of the
/// two places.
ActivationSites read_activation_sites(const Checkpoint& checkpoint);

/// Writes the tensors and returns the "activations" object.
nlohmann::json write_activation_sites(CheckpointWriter& writer, const ActivationSites& sites, int bits);

/// True for a name that a site's tensor would have.
bool is_site_tensor(const std::string& tensor);

}  // namespace ballast
