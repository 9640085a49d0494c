// What a quantization run's result depends on, in a form that two runs can be compared by.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"
#include "quantize/recipe.h"

namespace ballast {

/// Name to value: command line flags ("--bits": "4") and files ("model.safetensors": content hash). Equal maps
/// mean byte-identical results, whatever the number of threads and the instruction set.
using RunFingerprint = std::map<std::string, std::string>;

/// Every field of the recipe, under the flag that sets it.
void add_recipe(RunFingerprint& fingerprint, const Recipe& recipe);
/// Content hashes of the configuration, the weight files and all side files that the output copies.
void add_model(RunFingerprint& fingerprint, const Checkpoint& source);

/// One entry per difference: "--bits 4 -> 3", "model.safetensors changed"; empty for equal ones.
std::vector<std::string> differences(const RunFingerprint& then, const RunFingerprint& now);

}  // namespace ballast
