// Grids for activations, found on a sample of calibration data.
//
// A grid is judged by what rounding does to the layer behind it, weighted by how much the loss minds (PTQ4ViT, arXiv
// 2111.12293, §3.3, the diagonal of the Fisher matrix of the layer's outputs O):
//
//   Σ_t Σ_o g_to² · (O − Ô)_to²,    O − Ô = (x − x̂)·Wᵀ
//
// with g = ∂L/∂O of L = −log p(likeliest class). For what attention reads, x is its result, the input of the layer that
// ends the branch, and x̂ the same with operands rounded.
//
// Differs from the paper: it takes the gradient of KL(model ‖ the same model), which is zero but for rounding noise. Uniform
// grids are affine, the ends of their range searched apart; the paper's are symmetric.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engine/core/workspace.h"
#include "engine/nn/attention.h"
#include "engine/nn/context.h"

namespace ballast {

/// The outputs of some layers that share an input, as a measure of errors in it.
class OutputErrors {
 public:
  /// `squares`: f32 [tokens, out_features] of each layer, g²; empty: all outputs count the same.
  OutputErrors(Backend& backend, std::vector<const nn::Linear*> layers,
               std::vector<std::span<const float>> squares)
      : backend_(backend), layers_(std::move(layers)), squares_(std::move(squares)) {}

  /// Of an error e = x − x̂, f32 [tokens, in_features].
  double operator()(const TensorView& e) const;

 private:
  Backend& backend_;
  std::vector<const nn::Linear*> layers_;
  std::vector<std::span<const float>> squares_;
};

/// What a grid costs; smaller is better.
using GridCost = std::function<double(const ActivationGrid& grid)>;

/// An affine grid for values between low and high.
ActivationGrid affine_grid(float low, float high, int bits);

/// The best affine grid whose range lies within [low, high], and 0 within it.
ActivationGrid search_affine(float low, float high, int bits, const GridCost& cost);
/// The best twin_sign grid; low < 0 < high.
ActivationGrid search_twin_sign(float low, float high, int bits, const GridCost& cost);
/// The best of twin_size and, where `logarithms`, logarithm grids for numbers from 0 to 1.
ActivationGrid search_probabilities(int bits, bool logarithms, const GridCost& cost);

struct InputGrid {
  ActivationGrid grid;
  double cost = 0;
};
/// For the input x, f32 [tokens, in_features]: affine, or twin_sign where the range is lopsided as behind GELU. With
/// `factors`, [in_features], the layers read x times these: x is folded (range_fold.h), they are not.
InputGrid search_input(Backend& backend, const TensorView& x, int bits, const OutputErrors& errors,
                       std::span<const float> factors = {});

/// Operands of attention on whole sequences.
struct AttentionSample {
  const nn::AttentionBranch& branch;
  TensorView q, k, v;  ///< f32 [tokens, width], before they are rounded
  std::span<const AttentionSpan> spans;
};
struct AttentionGrids {
  ActivationGrid queries, keys, probabilities, values;
};
/// One after the other, each beside those already found, then queries and keys again beside all.
AttentionGrids search_attention(Backend& backend, const AttentionSample& sample, int bits, bool logarithms,
                                const OutputErrors& errors);

}  // namespace ballast
