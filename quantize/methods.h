// Methods choose codes. Each is one file in methods/ and one row in methods.cpp.
#pragma once

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

  /// For a method that factors what it is given: with `factor` in place of one of the curvature, which is left out.
  LayerInput(Backend& backend, InverseFactor factor, const FactorOptions& options, std::string layer)
      : backend_(backend), options_(options), layer_(std::move(layer)), factor_(std::move(factor)) {}

  const Curvature& curvature() {
    if (factor_ && factor_->holds_curvature()) factor_->give_back(backend_, curvature_);
    return curvature_;
  }
  const FactorOptions& options() const { return options_; }
  const InverseFactor& factor() {
    if (!factor_) factor_ = factorize(backend_, std::move(curvature_), options_, layer_);
    return *factor_;
  }
  /// E‖Ax‖² for A f32 [rows, size], where the curvature is that of activations.
  double output_power(std::span<const float> a) const {
    const bool held = factor_ && factor_->holds_curvature();
    const double spread = held ? quadratic_form(backend_, factor_->curvature(), a, factor_->order)
                               : quadratic_form(backend_, symmetric_view(curvature_.h, curvature_.size), a);
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
  MethodOptions options;
  LayerInput* input = nullptr;  ///< null for a method that uses no curvature
};

struct LayerSolution {
  QuantizedMatrix matrix;
  double damping = 0;
};

struct Method {
  const char* name;
  LayerSolution (*solve)(Backend& backend, const LayerProblem& problem);
  /// Bits per weight to expect, every stored byte counted but outliers, whose number the weights decide.
  double (*stored_bits)(int64_t rows, int64_t columns, const GridOptions& grid, const MethodOptions& options);
  bool uses_curvature = true;
  std::span<const int> bits;     ///< widths it can produce
  bool has_groups = true;        ///< false: blocks of its own instead of --group-size
  bool has_uniform_grid = true;  ///< zero point and range can be chosen: --symmetric, --clip-search, …
  bool has_column_order = true;  ///< --act-order and --static-groups apply
  bool one_curvature = false;    ///< rows share choices: --curvature guided keeps them in one run
  int64_t group_size = 0;        ///< default; 0: the whole row
  double damping = 0.01;         ///< default
  int sweeps = 0;                ///< default of coordinate descent; -1: it has none

  bool has_width(int bits) const;
  /// "expected 2, 3, 4 or 8"
  std::string widths() const;
};

/// Error listing the known methods.
const Method& method_named(const std::string& name);
/// Error for a choice in the recipe that the method does not have, with the reason, or out of range.
void check_options(const Method& method, const Recipe& recipe);

/// An empty matrix for the problem's shape and grid.
AffineMatrix empty_matrix(const LayerProblem& problem);
void store_grid(AffineMatrix& matrix, int64_t row, int64_t group, const struct Grid& grid);

}  // namespace ballast
