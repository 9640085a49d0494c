// GPTQ (arXiv 2210.17323): the column solver with a uniform grid per row or group; afterwards, if asked for,
// sweeps of coordinate descent on the same objective.
//
// Differs from the released code: a group's grid is fitted on weights that hold all earlier errors, also
// inside a block of columns; --act-order always uses grids fitted on the original weights, so no permutation
// is needed at run time.
#pragma once

#include "quantize/methods.h"

namespace ballast {

LayerSolution solve_gptq(Backend& backend, const LayerProblem& problem);

}  // namespace ballast
