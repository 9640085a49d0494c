// What a quantization run did, for people (a table) and for programs (JSON).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "quantize/recipe.h"

namespace ballast {

struct LayerReport {
  std::string name;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int bits = 0;
  int64_t group_size = 0;
  double bits_per_weight = 0;
  double error_before = 0;   ///< E‖(W − Q)x‖² / E‖Wx‖² over the calibration inputs
  double error_after = 0;    ///< the same with the compensation
  double damping = 0;        ///< 0: not used
  double zero_inputs = 0;    ///< share of the calibration inputs that are exactly 0
  double outlier_share = 0;  ///< of the weights, kept apart in 16 bits (sparse outliers)
  double seconds = 0;
};

struct QuantizeReport {
  Recipe recipe;
  std::string calibration;  ///< where the tokens came from
  uint64_t calibration_hash = 0;
  int64_t samples = 0;  ///< windows of text, or pictures
  int64_t views = 1;    ///< of a picture
  int64_t length = 0;
  std::vector<LayerReport> layers;
  std::vector<std::string> kept_float;  ///< modules that an override left in float
  double tuning_before = 0;  ///< mean KL per token in nats as tuning began and ended; 0 without tuning
  double tuning_after = 0;
  double tuning_codes_moved = 0;
  double seconds = 0;
  int64_t peak_memory_bytes = 0;
  uint64_t output_bytes = 0;

  /// Mean stored bits per weight over the quantized modules.
  double bits_per_weight() const;
  nlohmann::json json() const;
  /// One row per layer and a summary line.
  std::string table() const;
};

}  // namespace ballast
