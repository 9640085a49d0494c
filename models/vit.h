// Image classifiers: ViT (arXiv 2010.11929) and DeiT (arXiv 2012.12877), the latter with a distillation token or with a
// distillation token and a head of its own, whose logits are averaged with the other's. Tensor names of Hugging Face or
// of timm, whose fused qkv is split.
#pragma once

#include <memory>

#include "engine/io/checkpoint.h"
#include "engine/nn/model.h"

namespace ballast {

std::unique_ptr<nn::Model> build_vit(const Checkpoint& checkpoint, Backend& backend);

}  // namespace ballast
