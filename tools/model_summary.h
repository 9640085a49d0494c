// How a model's matrices are stored: what `inspect` prints and the server tells its clients.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/io/checkpoint.h"
#include "engine/nn/model.h"

namespace ballast {

/// One linear layer as loaded.
struct LayerFacts {
  std::string name, encoding;
  int64_t out_features, in_features;
  double bits;            ///< per weight, scales and zero points included
  int64_t outliers = -1;  ///< -1: the encoding has none
  double weights() const { return double(out_features) * double(in_features); }
};

/// One place whose values are rounded as the model runs.
struct SiteFacts {
  std::string name;
  ActivationGrid grid;
  bool integers;  ///< codes are multiplied as integers; else what they stand for, in floats
};

struct ModelSummary {
  nn::ModelFacts facts;
  std::vector<LayerFacts> blocks, outside;
  std::vector<SiteFacts> sites;
  bool tied = false;

  void add_block(nn::Block& block);
  /// Projections and head.
  void add_outside(nn::Model& model);
  double block_bits() const;
  double model_bits() const;
  /// Of the weights whose encoding has outliers; 0 where none has.
  double outlier_share() const;
};

/// "affine of 8 bits ×48 on integers, …"
std::string sites_text(const std::vector<SiteFacts>& sites);
/// "W4 g128 ×72, f16 ×1"
std::string encodings_text(const std::vector<LayerFacts>& layers);
uint64_t tensor_bytes(const Checkpoint& checkpoint);
/// Shape, sizes, bits and encodings of a loaded model.
nlohmann::json facts_json(const Checkpoint& checkpoint, nn::Model& model);

}  // namespace ballast
