// BiLLM (arXiv 2402.04291, algorithms 1 and 2): signs with a few scales per row and block of columns, error feedback
// between the columns.
//
//   saliency of a column: Σ over rows of w² / U_jj²; the 1 … 49 most salient columns of a block, as many as
//   leave the least ‖W − Q‖², are binarized twice (residual binarization), the others once, in two groups split
//   at a magnitude (81 percentiles searched)
//   one stage: mean + scale · sign(w − mean), scale = mean |w − mean|
//
// Differs from the paper: errors are fed back column by column, not block by block, so that a weight takes the
// nearest of its row's four values for what it has become; each row has a split of its own, which costs no bit;
// both searches look at W (the released code looks at saliencies); means and scales are then settled on the
// weights that chose them.
#pragma once

#include "quantize/methods.h"

namespace ballast {

LayerSolution solve_billm(Backend& backend, const LayerProblem& problem);

}  // namespace ballast
