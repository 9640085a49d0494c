// Architecture name -> builder. To add a model: one file with its builder, one row in registry.cpp.
#pragma once

#include <memory>

#include "engine/io/checkpoint.h"
#include "engine/nn/model.h"

namespace ballast {

/// The model of a checkpoint, with its ends loaded and its blocks loaded on demand: the checkpoint and the
/// backend must outlive it. Error when config.json names an architecture that is not known (the message lists
/// those that are), or when config and tensors disagree.
std::unique_ptr<nn::Model> load_model(const Checkpoint& checkpoint, Backend& backend);

/// Whether that model takes images, told from config.json alone. The same errors for an architecture that is not known.
bool reads_images(const Checkpoint& checkpoint);

}  // namespace ballast
