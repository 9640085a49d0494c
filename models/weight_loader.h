// Layers from a checkpoint's tensors by their Hugging Face names, float or quantized.
#pragma once

#include <map>
#include <span>
#include <string>

#include "engine/io/activation_sites.h"
#include "engine/nn/layernorm.h"
#include "engine/nn/linear.h"

namespace ballast {

/// Names of the tensors that hold compensation outside a bias.
inline constexpr const char* kCompensationSuffix = ".compensation";  ///< f16 or f32 [out_features]
inline constexpr const char* kPositionCompensationSuffix =
    ".position_compensation";  ///< f16 or f32 [positions, out_features]

class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, Backend& backend);

  bool has(const std::string& tensor) const { return checkpoint_.find(tensor) != nullptr; }
  /// `name`.weight [rows, columns] in the dtype it is stored in, or the packed weight of module `name`. The
  /// file's pages are released once copied.
  Weight weight(const std::string& name, int64_t rows, int64_t columns) const;
  /// Rows [first, rows) of `name`.weight.
  Weight weight_from(const std::string& name, int64_t rows, int64_t columns, int64_t first) const;
  /// Tensor `tensor` of shape `stored`, seen as a matrix [rows, columns] of the same elements.
  Weight reshaped(const std::string& tensor, const Shape& stored, int64_t rows, int64_t columns) const;
  /// Tensor `tensor` as f32 values; Error unless it has this shape.
  std::vector<float> floats(const std::string& tensor, const Shape& shape) const;
  /// The same on the backend.
  Tensor tensor(const std::string& name, const Shape& shape) const;
  Tensor from_floats(std::span<const float> values, const Shape& shape) const {
    return Tensor::from_floats(backend_, values, shape);
  }
  Weight dense(std::span<const float> values, int64_t rows, int64_t columns) const {
    return Weight::dense(backend_, {values.data(), DType::f32, {rows, columns}});
  }
  /// Linear layer `name`, stored as the rows [first, first + out_features) of the linear layer `fused` of `rows` rows.
  nn::Linear linear_part(const std::string& name, const std::string& fused, int64_t rows, int64_t first,
                         int64_t out_features, int64_t in_features) const;
  /// A linear layer; with `biased` its bias must be there. Compensation tensors are picked up where they
  /// exist.
  nn::Linear linear(const std::string& name, int64_t out_features, int64_t in_features, bool biased) const;
  /// The grid of an activation site; empty where its values stay as they are. Linear layers have theirs already.
  std::optional<ActivationGrid> grid(const std::string& site) const;
  const ActivationSites& sites() const { return sites_; }
  /// weight and bias [hidden], or neither when not `affine`; without `biased` the bias is left out.
  nn::LayerNorm layernorm(const std::string& name, int64_t hidden, bool affine) const;

 private:
  const Checkpoint& checkpoint_;
  Backend& backend_;
  ActivationSites sites_;
  std::map<std::string, double> zero_inputs_;  ///< PackedConfig::zero_inputs
};

}  // namespace ballast
