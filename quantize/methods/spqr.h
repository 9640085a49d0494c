// SpQR (arXiv 2306.03078, algorithm 1): error feedback with small groups, whose scales and zero points are
// quantized themselves, and with the most sensitive weights kept in 16 bits.
//
//   sensitivity of a weight: ((w − q) / U_jj)²;   threshold τ = rel · mean_j(var(W_:j) / U_jj²)
//   a group's grid is fitted to those weights whose absence would not lower the group's sensitivity by more
//   than τ (leave-one-out), the others replaced by their mean
//   a column's weight is an outlier when its own sensitivity exceeds τ
//
// Differs from the paper: the grid's range is fitted for the quantized scale (the zero point aligns the middle
// of the range after the scale was rounded); leave-one-out grids are refitted only where they differ, for the
// smallest and the largest weight.
#pragma once

#include "quantize/methods.h"

namespace ballast {

LayerSolution solve_spqr(Backend& backend, const LayerProblem& problem);

}  // namespace ballast
