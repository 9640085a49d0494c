// Methods choose codes. Each is one file in methods/ and one row in methods.cpp.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/encodings/quantized_matrix.h"
#include "quantize/column_solver.h"
#include "quantize/recipe.h"

namespace ballast {

/// The curvature that one or more layers share. Factored at most once, in the curvature's own memory unless a
/// method wants both.
class LayerInput {
 public:
  LayerInput(Backend& backend, Curvature curvature, const FactorOptions& options, std::string layer)
      : backend_(backend), curvature_(std::move(curvature)), options_(options), layer_(std::move(layer)) {}

  const Curvature& curvature() {
    if (factor_ && factor_->holds_curvature()) factor_->give_back(backend_, curvature_);
    return curvature_;
  }
  const InverseFactor& factor() {
    if (!factor_) factor_ = factorize(backend_, std::move(curvature_), options_, layer_);
    return *factor_;
  }
  /// E‖Ax‖² for A f32 [rows, size], where the curvature is that of activations.
  double output_power(std::span<const float> a) const {
    const SymmetricView view = factor_ && factor_->holds_curvature()
                                   ? factor_->curvature()
                                   : symmetric_view(curvature_.h, curvature_.size);
    const double spread = quadratic_form(backend_, view, a);
    return curvature_.mean.empty() ? spread : spread + squared_norm(backend_, a, curvature_.mean);
  }

 private:
  Backend& backend_;
  Curvature curvature_;
  FactorOptions options_;
  std::string layer_;
  std::optional<InverseFactor> factor_;
};

struct LayerProblem {
  std::string name;
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::span<const float> weight;  ///< [out_features, in_features], finite
  GridOptions grid;               ///< group_size resolved: 1 … in_features, dividing it
  bool static_groups = false;
  LayerInput* input = nullptr;  ///< null for a method that uses no curvature
};

struct LayerSolution {
  QuantizedMatrix matrix;
  double damping = 0;
};

struct Method {
  const char* name;
  bool uses_curvature;
  LayerSolution (*solve)(Backend& backend, const LayerProblem& problem);
};

/// Error listing the known methods.
const Method& method_named(const std::string& name);

/// An empty matrix for the problem's shape and grid.
AffineMatrix empty_matrix(const LayerProblem& problem);
void store_grid(AffineMatrix& matrix, int64_t row, int64_t group, const struct Grid& grid);

}  // namespace ballast
