"""Grids for activations in float64, from the papers' formulas, apart from the C++ code.

PTQ4ViT (arXiv 2111.12293): uniform (section 2.1), twin uniform (3.2), the guided distance of outputs (3.3); FQ-ViT (2111.13824) and
RepQ-ViT (2212.08254): logarithms of base 2 and root 2.
"""

import numpy as np


def uniform(x, step, low, high):
    return step * np.clip(np.rint(x / step), low, high)


def affine(x, bits, step, zero_point):
    return uniform(x, step, -zero_point, 2**bits - 1 - zero_point)


def twin_sign(x, bits, step, shift):
    """Behind GELU: R1 holds the negative values with the fine step, R2 the others with a step 2^shift as large."""
    half = 2 ** (bits - 1)
    return np.where(x < 0, uniform(x, step, -half, 0), uniform(x, step * 2**shift, 0, half - 1))


def twin_size(x, bits, step, shift):
    """Behind softmax: R1 holds what its 2^(bits - 1) codes reach."""
    half = 2 ** (bits - 1)
    return np.where(np.rint(x / step) < half, uniform(x, step, 0, half - 1), uniform(x, step * 2**shift, 0, half - 1))


def logarithm(x, bits, step, per_octave):
    with np.errstate(divide="ignore"):
        codes = np.rint(-per_octave * np.log2(np.clip(x / step, 0, 1)))
    return np.where(codes >= 2**bits - 1, 0, step * 2.0 ** (-codes / per_octave))


def near_a_tie(x, step, margin):
    """Where rounding x / step could go either way in another precision."""
    return np.abs(x / step - np.floor(x / step) - 0.5) < margin


def guided_distance(x, rounded, weight, squares):
    """Sum over tokens and outputs of g^2 (O - O^)^2, O = x W^T."""
    return float((squares * ((x - rounded) @ weight.T) ** 2).sum())
