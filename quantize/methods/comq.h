// COMQ (arXiv 2403.07134, algorithms 1 and 2): coordinate descent from Q = W. The first sweep snaps every weight to its
// row's grid with the errors of all others fed back, later ones revise codes; after each the scales are put
// where they are best for the codes, per channel (and group) or one for the layer.
//
// Differs from the paper: the damping of the curvature falls from sweep to sweep (coordinate_descent.h), without which
// COMQ does not reach GPTQ on strongly correlated inputs; scales are binary16; columns come in blocks by descending
// input power, inside a block in the paper's greedy order, unless --greedy-order asks for the paper's own. The released code never updates scales.
#pragma once

#include "quantize/methods.h"

namespace ballast {

LayerSolution solve_comq(Backend& backend, const LayerProblem& problem);

}  // namespace ballast
