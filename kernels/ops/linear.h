// y = activation(x · Wᵀ + bias + position_bias[position]) + residual
//
// With a grid x is rounded to it first. Where integer_codes() has codes for both sides, the product is an integer one.
//
// Determinism: how y is summed depends on the weight's shape and encoding alone, never on the number of tokens: in
// ascending order of k, or in exact integers with their few roundings in a fixed order. So a token's result is the
// same bits alone, in a batch or in any chunk, and on every instruction set. Layers with affine weights differ from
// that of the decoded matrix by what kernels/README.md says.
#pragma once

#include "kernels/encodings/activation.h"
#include "kernels/encodings/views.h"
#include "kernels/view.h"

namespace ballast {

enum class Activation : uint8_t { none, relu, gelu };  ///< gelu is x/2·(1 + erf(x/√2))

template <class Encoding>
struct Linear {
  TensorView x;     ///< f32 [tokens, in_features]
  Encoding weight;  ///< [out_features, in_features]
  std::optional<ActivationGrid> grid;
  TensorView bias;  ///< f32 [out_features], or empty
  TensorView
      position_bias;  ///< f32 [positions, out_features], or empty; tokens beyond its rows get nothing added
  TensorView positions;  ///< i32 [tokens]; needed with position_bias
  Activation activation = Activation::none;
  TensorView residual;  ///< f32 [tokens, out_features], or empty; may be y itself
  OutputView y;         ///< f32 [tokens, out_features]

  void check() const;
};

template <class Encoding>
void Linear<Encoding>::check() const {
  DimChecker dims("linear");
  dims.bind("in_features", weight.in_features, "weight");
  dims.bind("out_features", weight.out_features, "weight");
  dims.match(x, "x", {"tokens", "in_features"});
  dims.match(y, "y", {"tokens", "out_features"});
  dims.dtype(x, "x", {DType::f32});
  dims.dtype(y, "y", {DType::f32});
  if (bias) dims.match(bias, "bias", {"out_features"});
  if (residual) dims.match(residual, "residual", {"tokens", "out_features"});
  if (position_bias) {
    dims.match(position_bias, "position_bias", {"positions", "out_features"});
    dims.match(positions, "positions", {"tokens"});
    dims.dtype(positions, "positions", {DType::i32});
  }
  CHECK(weight.data, "linear: weight was not packed");
  CHECK(x.data != y.data, "linear: y must not overwrite x");
}

/// dy ← dy · activation'(z), from the gradient of y = activation(z) to that of z. The other two steps back
/// through a linear layer are dense products: dX += dZ · W (RankUpdate) and dW = dZᵀ · X (SecondMoment).
struct ActivationBackward {
  Activation activation = Activation::none;
  TensorView z;   ///< f32 [tokens, width]; for ReLU, whose derivative at 0 is 0, y does as well
  OutputView dy;  ///< f32 [tokens, width]

  void check() const {
    DimChecker dims("activation_backward");
    dims.match(z, "z", {"tokens", "width"});
    dims.match(dy, "dy", {"tokens", "width"});
    dims.dtype(z, "z", {DType::f32});
    dims.dtype(dy, "dy", {DType::f32});
  }
};

}  // namespace ballast
