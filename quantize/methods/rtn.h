// Round to nearest: every weight by itself.
#pragma once

#include "quantize/methods.h"

namespace ballast {

LayerSolution solve_rtn(Backend& backend, const LayerProblem& problem);

}  // namespace ballast
