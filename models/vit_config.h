// What a ViT or DeiT checkpoint says about itself: config.json of Hugging Face or timm, and the names of its tensors.
#pragma once

#include <string>

#include "engine/io/checkpoint.h"
#include "engine/nn/model.h"

namespace ballast {

/// Where tensors are: `prefix` + name, and `prefix` + `block` + index + "." + name inside a block. Heads have no prefix.
struct VitNames {
  const char* prefix;
  const char *class_token, *distillation_token, *positions, *projection, *final_norm;
  const char* block;
  const char* fused;  ///< q, k and v as one linear layer; null where there is none
  const char *query, *key, *value, *out, *norm_before, *norm_after, *fc1, *fc2;
  const char* probabilities;  ///< the activation site behind softmax
  const char *head, *distillation_head;

  std::string outer(const char* name) const { return std::string(prefix) + name; }
};

struct VitConfig {
  VitNames names;
  int64_t hidden = 0, layers = 0, heads = 0, ffn = 0, classes = 0;
  nn::ImageFacts image;
  float epsilon = 1e-6f;
  Activation activation = Activation::gelu;
  bool query_biases = true;  ///< q, k and v have biases
  bool distilled = false;    ///< a distillation token follows the class token
  bool two_heads = false;    ///< it has a head of its own

  /// Error naming file and field or tensor when config and tensors are no ViT or DeiT classifier, contradict each
  /// other, or hold something that this model has no part for.
  static VitConfig read(const Checkpoint& checkpoint);
};

}  // namespace ballast
