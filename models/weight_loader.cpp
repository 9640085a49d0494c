#include "models/weight_loader.h"

#include "engine/io/quantized.h"

namespace ballast {

WeightLoader::WeightLoader(const Checkpoint& checkpoint, Backend& backend)
    : checkpoint_(checkpoint), backend_(backend), sites_(read_activation_sites(checkpoint)) {
  if (const auto config = packed_config(checkpoint)) zero_inputs_ = config->zero_inputs;
}

Weight WeightLoader::weight(const std::string& name, int64_t rows, int64_t columns) const {
  if (has_quantized_weight(checkpoint_, name)) {
    const auto zeros = zero_inputs_.find(name);
    return Weight::quantized(backend_, read_quantized(checkpoint_, name, rows, columns),
                             zeros == zero_inputs_.end() ? 0 : zeros->second);
  }
  return weight_from(name, rows, columns, 0);
}

Weight WeightLoader::weight_from(const std::string& name, int64_t rows, int64_t columns,
                                 int64_t first) const {
  const std::string tensor = name + ".weight";
  const TensorView stored = checkpoint_.weight(tensor, {rows, columns});
  Weight weight = Weight::dense(backend_, stored.rows(first, rows - first));
  checkpoint_.release(checkpoint_.require(tensor));
  return weight;
}

Weight WeightLoader::reshaped(const std::string& tensor, const Shape& stored, int64_t rows,
                              int64_t columns) const {
  const TensorView view = checkpoint_.weight(tensor, stored);
  CHECK(stored.elements() == rows * columns);
  return Weight::dense(backend_, {view.data, view.dtype, {rows, columns}});
}

std::vector<float> WeightLoader::floats(const std::string& tensor, const Shape& shape) const {
  checkpoint_.weight(tensor, shape);
  return checkpoint_.floats(checkpoint_.require(tensor));
}

Tensor WeightLoader::tensor(const std::string& name, const Shape& shape) const {
  return from_floats(floats(name, shape), shape);
}

nn::Linear WeightLoader::linear_part(const std::string& name, const std::string& fused, int64_t rows,
                                     int64_t first, int64_t out_features, int64_t in_features) const {
  nn::Linear layer;
  layer.name = name;
  layer.weight = Weight::dense(
      backend_, checkpoint_.weight(fused + ".weight", {rows, in_features}).rows(first, out_features));
  layer.input_grid = grid(layer.input_site().name);
  if (!has(fused + ".bias")) return layer;
  const std::vector<float> bias = floats(fused + ".bias", {rows});
  layer.bias = Tensor::from_floats(backend_, std::span(bias).subspan(size_t(first), size_t(out_features)),
                                   {out_features});
  return layer;
}

nn::Linear WeightLoader::linear(const std::string& name, int64_t out_features, int64_t in_features,
                                bool biased) const {
  nn::Linear layer;
  layer.name = name;
  layer.weight = weight(name, out_features, in_features);
  layer.input_grid = grid(layer.input_site().name);
  // Quantized folders of bias-free models carry a bias everywhere, so look rather than trust the flag alone.
  if (biased || has(name + ".bias")) {
    layer.bias = tensor(name + ".bias", {out_features});
  } else if (has(name + kCompensationSuffix)) {
    layer.bias = tensor(name + kCompensationSuffix, {out_features});
  }
  if (const StoredTensor* table = checkpoint_.find(name + kPositionCompensationSuffix)) {
    if (table->shape.size() != 2)
      throw Error(str(checkpoint_.folder().string(), ": ", table->name, " has rank ", table->shape.size(),
                      ", expected 2"));
    checkpoint_.weight(table->name, {table->shape[0], out_features});
    layer.position_bias =
        Tensor::from_floats(backend_, checkpoint_.floats(*table), {table->shape[0], out_features});
  }
  return layer;
}

std::optional<ActivationGrid> WeightLoader::grid(const std::string& site) const {
  const auto found = sites_.find(site);
  return found == sites_.end() ? std::nullopt : std::optional(found->second);
}

nn::LayerNorm WeightLoader::layernorm(const std::string& name, int64_t hidden, bool affine) const {
  nn::LayerNorm norm;
  norm.name = name;
  if (!affine) return norm;
  norm.weight = tensor(name + ".weight", {hidden});
  norm.bias = tensor(name + ".bias", {hidden});
  return norm;
}

}  // namespace ballast
