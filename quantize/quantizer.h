// Quantizes a model block by block and writes the new checkpoint.
#pragma once

#include <functional>
#include <string>

#include "engine/io/checkpoint.h"
#include "engine/io/checkpoint_writer.h"
#include "engine/nn/model.h"
#include "quantize/data.h"
#include "quantize/journal.h"
#include "quantize/recipe.h"
#include "quantize/report.h"

namespace ballast {

struct QuantizeProgress {
  int64_t done = 0;  ///< modules finished
  int64_t total = 0;
  int64_t resumed = 0;  ///< of `done`, those taken from the journal
  std::string module;   ///< the one just finished
};

struct QuantizeJob {
  const Checkpoint& source;
  Backend& backend;
  nn::Model& model;  ///< of `source`; its blocks are loaded one at a time and left unloaded
  const Recipe& recipe;
  const CalibrationTokens& tokens;
  CheckpointWriter& writer;
  Journal* journal = nullptr;  ///< modules found in it are not solved again; finished ones are added to it
  std::function<void(const QuantizeProgress&)> progress = [](const QuantizeProgress&) {};
};

/// Runs the job and finishes the writer. Error for a non-finite weight (module and index named), a group size
/// that does not divide a layer, or a second moment that cannot be factored.
QuantizeReport quantize_model(const QuantizeJob& job);

/// What the job would produce, from shapes alone. Error when a group size does not divide a layer.
struct QuantizePlan {
  int64_t modules = 0;
  int64_t weights = 0;                 ///< in the modules to be quantized
  double bits_per_weight = 0;          ///< mean over them
  uint64_t output_bytes = 0;           ///< of tensor data
  uint64_t journal_bytes = 0;          ///< of a journal that holds every module and the calibration tokens
  uint64_t peak_memory_bytes = 0;      ///< estimate: streams, statistics and copies of the largest layer
  double gigaflops = 0;                ///< estimate of the arithmetic
  std::vector<std::string> unmatched;  ///< patterns of --override and --skip that no module's name matches
};
QuantizePlan plan_quantization(const Checkpoint& source, nn::Model& model, const Recipe& recipe,
                               int64_t samples, int64_t length);

}  // namespace ballast
