// y = activation(x·Wᵀ + b) + residual, with the weight in whatever encoding it was loaded.
#pragma once

#include <string>

#include "engine/core/weight.h"
#include "engine/nn/activation_site.h"
#include "engine/nn/context.h"

namespace ballast::nn {

class Linear {
 public:
  std::string name;  ///< Hugging Face module name, "model.decoder.layers.0.fc1"
  Weight weight;     ///< [out_features, in_features]
  Tensor bias;       ///< f32 [out_features], or empty
  Tensor
      position_bias;  ///< f32 [positions, out_features], or empty: position compensation, relative to `bias`
  std::optional<ActivationGrid> input_grid;  ///< of x; site "<name>.input"

  int64_t out_features() const { return weight.out_features(); }
  int64_t in_features() const { return weight.in_features(); }
  /// Bytes read by one use.
  int64_t bytes() const { return weight.bytes() + bias.bytes(); }

  ActivationSite input_site() { return {name + ".input", &input_grid}; }
  /// Whether the products of codes run on integers, not on what they stand for.
  bool runs_on_integers() const {
    return input_grid && weight.visit([&](const auto& view) { return integer_codes(*input_grid, view).has_value(); });
  }

  struct Epilogue {
    Activation activation = Activation::none;
    TensorView residual;  ///< f32 [tokens, out_features], or empty; may be y
  };
  /// x: f32 [tokens, in_features]; y: f32 [tokens, out_features].
  void forward(const ForwardContext& context, const TensorView& x, const OutputView& y,
               const Epilogue& epilogue) const;
  void forward(const ForwardContext& context, const TensorView& x, const OutputView& y) const {
    forward(context, x, y, Epilogue{});
  }

 private:
  void run(const ForwardContext& context, const TensorView& x, const OutputView& y, const Epilogue& epilogue,
           const std::optional<ActivationGrid>& grid) const;
  /// From dy to dx; the context's observer sees the gradient in between.
  void backward(const ForwardContext& context, const TensorView& x, const TensorView& y,
                Activation activation) const;
};

}  // namespace ballast::nn
