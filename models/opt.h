// OPT (arXiv 2205.01068) in all its published variants, Galactica included: pre-norm, and the post-norm 350M
// with its narrower embeddings; with and without biases, affine norms, a final norm, a tied head; ReLU or
// GELU.
#pragma once

#include <memory>

#include "engine/io/checkpoint.h"
#include "engine/nn/model.h"

namespace ballast {

std::unique_ptr<nn::Model> build_opt(const Checkpoint& checkpoint, Backend& backend);

}  // namespace ballast
