"""SpQR (2306.03078, section 4, algorithm 1): small groups, quantized statistics, outliers. numpy, float64."""

from dataclasses import dataclass

import numpy as np

from reference_quantizers import Margins, binary16, binary16_tie_distance, damped, inverse_factor, tie_distance


@dataclass
class SparseOutliers:
    """The encoding of kernels/encodings/sparse_outliers.h, with outliers as a dense mask and values."""

    codes: np.ndarray  # [out, in]
    scale_codes: np.ndarray  # [out, groups]
    zero_codes: np.ndarray  # [out, groups]
    stats: np.ndarray  # [tiles, groups, 4]: scale low, scale step, zero low, zero step
    outlier: np.ndarray  # bool [out, in]
    values: np.ndarray  # [out, in], meaningful where outlier
    margins: Margins

    def decoded(self):
        rows, n = self.codes.shape
        tile = np.arange(rows) // 16
        size = n // self.scale_codes.shape[1]
        low_s, step_s, low_z, step_z = (self.stats[tile, :, k] for k in range(4))
        spread = lambda a: np.repeat(a, size, axis=1)
        scale, zero = spread(low_s + step_s * self.scale_codes), spread(low_z + step_z * self.zero_codes)
        return np.where(self.outlier, self.values, scale * (self.codes - zero))


def real_grid(lo, hi, bits):
    """s = (max - min) / (2^b - 1), z = -min / s: neither rounded, and 0 need not lie in the range."""
    scale = (hi - lo) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1.0)
    return scale, -lo / scale


def real_codes(w, scale, zero, bits):
    return np.clip(np.rint(w / scale + zero), 0, 2**bits - 1)


def grid_error(w, u_diagonal, bits):
    """sum over the group of ((w - Q) / U_jj)^2 with a grid fitted on w itself. w [rows, columns]."""
    scale, zero = real_grid(w.min(axis=1), w.max(axis=1), bits)
    q = scale[:, None] * (real_codes(w, scale[:, None], zero[:, None], bits) - zero[:, None])
    return (((w - q) / u_diagonal) ** 2).sum(axis=1)


def leave_one_out_gain(w, u_diagonal, bits):
    """[rows, columns]: how much the group's error falls when one weight is left out and the grid fitted on the rest
    (algorithm 1, function outliers)."""
    base = grid_error(w, u_diagonal, bits)
    n = w.shape[1]
    return np.stack([base - grid_error(np.delete(w, j, 1), np.delete(u_diagonal, j), bits) for j in range(n)], axis=1)


def second_level(values, stat_bits, sensitivity, tile_rows=16):
    """Min-max quantization of one group's statistics over tiles of rows: (codes [rows], low and step [tiles], decoded [rows],
    margins [rows]). low is rounded to binary16 first, the step spans what is left from there to the largest.
    sensitivity: how much a statistic moves when a weight is wrong by one step; only for the margins."""
    codes, decoded, lows, steps, margins = [], [], [], [], []
    levels = 2**stat_bits - 1
    for start in range(0, len(values), tile_rows):
        tile = values[start : start + tile_rows]
        low = binary16(tile.min())
        ideal_step = (tile.max() - low) / levels
        step = binary16(ideal_step)
        position = (tile - low) / step if step > 0 else np.zeros_like(tile)
        code = np.clip(np.rint(position), 0, levels)
        codes.append(code), decoded.append(low + step * code), lows.append(low), steps.append(step)
        exact = np.array([tile.min(), ideal_step])
        spacing = np.spacing(np.abs(exact).astype(np.float16)).astype(float)
        stored = (binary16_tie_distance(exact) * spacing * [1, levels / 2]).min()
        margins.append(np.minimum(tie_distance(position) * step / 2, stored) / sensitivity)
    return np.concatenate(codes), np.array(lows), np.array(steps), np.concatenate(decoded), np.concatenate(margins)


def spqr(w, h, dead, bits, group_size, stat_bits=3, damping=1.0, threshold=0.2, zero_rule="middle",
         feed_outlier_rounding=True, ddof=1):
    """Columns in turn as in GPTQ; at the start of a group: outliers by the leave-one-out test, grid of the rest, statistics
    quantized; at a column: outlier as well where ((w - q) / U_jj)^2 > tau. Outliers keep the compensated weight in binary16.

    tau = threshold * mean_j(var(W_:j) / U_jj^2) on the original weights (released code; ddof as torch's var).
    zero_rule: -min / s for the unrounded s (paper); "stored": for the s that is stored; "middle" (quantize/methods/spqr.h): the
    middle of the range falls on the middle of the codes with the s that is stored.
    feed_outlier_rounding: an outlier's own binary16 rounding is fed back like any error.
    """
    w = np.array(w, float)
    rows, n = w.shape
    margins = Margins(rows)
    w[:, dead] = 0
    u = inverse_factor(damped(h, dead, damping))
    diagonal = np.diag(u)
    tau = threshold * np.mean(w.var(axis=0, ddof=ddof) / diagonal**2)
    groups, tiles = n // group_size, -(-rows // 16)
    codes, values = np.zeros((rows, n)), np.zeros((rows, n))
    outlier = np.zeros((rows, n), bool)
    scale_codes, zero_codes = np.zeros((rows, groups)), np.zeros((rows, groups))
    stats = np.zeros((tiles, groups, 4))
    for j in range(n):
        g = j // group_size
        if j % group_size == 0:
            part = w[:, j : j + group_size]
            gain = leave_one_out_gain(part, diagonal[j : j + group_size], bits)
            left_out = gain > tau
            margins.note(np.abs(gain / tau - 1))
            kept = np.where(left_out, np.nan, part)
            empty = left_out.all(axis=1)
            kept[empty] = 0
            lo, hi = np.nanmin(kept, axis=1), np.nanmax(kept, axis=1)
            alone = lo == hi  # one weight left: its grid reaches to 0, as there is no range to divide
            lo, hi = np.where(alone, np.minimum(lo, 0), lo), np.where(alone, np.maximum(hi, 0), hi)
            scale, zero = real_grid(lo, hi, bits)
            scale_codes[:, g], stats[:, g, 0], stats[:, g, 1], stored, ties = second_level(
                scale, stat_bits, 2 * scale.max() / (2**bits - 1))
            margins.note(ties)
            divisor = np.where(stored > 0, stored, 1)
            if zero_rule == "stored":
                zero = -lo / divisor
            elif zero_rule == "middle":
                zero = (2**bits - 1) / 2 - (lo + hi) / (2 * divisor)
            zero_codes[:, g], stats[:, g, 2], stats[:, g, 3], zero, ties = second_level(zero, stat_bits, 2)
            margins.note(ties)
            scale = stored
        position = w[:, j] / scale + zero
        codes[:, j] = real_codes(w[:, j], scale, zero, bits)
        beyond = np.maximum(-position, position - (2**bits - 1))
        margins.note(np.where(beyond > 0, 1.0, tie_distance(position)))
        error = w[:, j] - scale * (codes[:, j] - zero)
        cost = (error / diagonal[j]) ** 2
        outlier[:, j] = cost > tau
        margins.note(np.abs(cost / tau - 1))
        values[:, j] = binary16(w[:, j])
        rounding = w[:, j] - values[:, j] if feed_outlier_rounding else 0
        error = np.where(outlier[:, j], rounding, error) / diagonal[j]
        w[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])
    return SparseOutliers(codes, scale_codes, zero_codes, stats, outlier, values, margins)
