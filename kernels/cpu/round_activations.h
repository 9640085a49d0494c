// A grid's numbers as kernels want them.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/encodings/activation.h"

namespace ballast {

/// Without x, y and count.
RoundTask round_task(const ActivationGrid& grid);

}  // namespace ballast
