// Coordinate descent on the codes of an affine matrix (COMQ, arXiv 2403.07134; QuantEase, arXiv 2309.01885).
//
// The objective is Σ over rows of d·H·dᵀ with d = w − q. In Gram form, with R = (W − Q)·H, the best value of one
// weight with all others held is q_j + R_j / H_jj; it is snapped to the row's grid, and R −= Δq_j · H_j. A sweep
// visits every weight. Columns are taken in blocks of 128: inside a block row by row, behind it by one product,
// so that a sweep costs about what GPTQ costs. Between sweeps a group takes another zero
// point, and where groups are short another scale, if the codes that it then allows are better, and the scales of a row are
// solved for together. No step raises the objective (beyond f32 rounding; rows that end above where
// they began are put back).
//
// Annealing: sweeps begin with a damping that all but turns H into the identity, and it falls by a constant factor
// from sweep to sweep. What rounding alone wants then bends gradually into what H wants, and descent ends in far
// better minima than from any start with H itself.
//
// Differs from COMQ: residuals of the layer's inputs are replaced by their second moment, the same thing for any
// number of inputs; the greedy order can be confined to blocks.
#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/encodings/affine.h"
#include "quantize/curvature.h"
#include "quantize/recipe.h"

namespace ballast {

/// Order in which coordinate descent visits the columns of a row.
enum class ColumnOrder : uint8_t {
  natural,  ///< as stored
  blocks,   ///< blocks of columns by descending input power, inside a block as greedy
  greedy,   ///< by descending ‖x_j‖·|w_j|, each row its own (arXiv 2403.07134, §3)
};

struct CoordinateOptions {
  int sweeps = 3;  ///< at most; stops when a sweep moves nothing
  ColumnOrder order = ColumnOrder::natural;
  bool anneal = true;        ///< see above; from 6 sweeps on
  bool refit_scales = true;  ///< closed form, rounded to binary16
  bool per_layer = false;    ///< one scale for all rows and groups; they must be equal already
  bool move_grids = true;    ///< zero points, and in short groups scales, by trial; not for a symmetric grid
  bool start_at_target = false;  ///< begin at Q = W instead of the matrix's codes: the first sweep then feeds
                                 ///< errors back as GPTQ does
  int max_code = 0;              ///< largest code in use; 0: the largest that the matrix's width holds
  double damping = 0;            ///< this share of mean(diag H) is added to the diagonal
};

struct CoordinateResult {
  double before = 0;  ///< Σ d·H·dᵀ at the start, in f32 products
  double after = 0;
  int sweeps = 0;  ///< taken
};

/// target: the weight to approximate, [out_features, in_features]. The same result for any number of threads.
/// Error when a moment is not finite.
CoordinateResult coordinate_descent(Backend& backend, std::span<const float> target,
                                    const Curvature& curvature, AffineMatrix& matrix,
                                    const CoordinateOptions& options);

}  // namespace ballast
