// Scales that minimize a quadratic, restricted to values that binary16 holds.
//
// With codes fixed, the groups g of a row contribute s_g·c̄_g, and moving the scales by δ changes d·H·dᵀ by
//   δᵀAδ − 2·bᵀδ,   A_gk = c̄_g·H·c̄_kᵀ,   b_g = c̄_g·(H·dᵀ).
// For one group per row δ = b/A is the closed form of COMQ (arXiv 2403.07134, §3).
#pragma once

#include <cstdint>
#include <span>

namespace ballast {

/// Moves `scales` (binary16 values held in f32) where that lowers the quadratic; true when one moved.
/// a: [n, n], the upper triangle holding A, is overwritten; b: [n]. Scales stay valid
/// (valid_scale). A group with A_gg = 0 keeps its own.
bool refit_scales(std::span<double> a, std::span<const double> b, bool half_zeros, std::span<float> scales);

}  // namespace ballast
