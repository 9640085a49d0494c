"""Coordinate descent on codes, as the papers write it: COMQ (2403.07134), QuantEase (2309.01885). numpy, float64.

Both minimize |X (w - q)|^2 one code at a time. With u = X (w - q), the best value of q_j with all others held is
q_j + <x_j, u> / |x_j|^2 (COMQ, equation 8; QuantEase, equation 7), snapped to the row's grid. Here with H = E[x x^T] in place of
X: <x_j, u> = (H (w - q))_j up to the same factor as |x_j|^2 = H_jj.
"""

import numpy as np

from reference_quantizers import (
    Affine, Margins, binary16, binary16_tie_distance, code_margin, codes_for, fit_all_groups, tie_distance)


def column_order(h, w_row, order, block=128):
    """natural: as stored. greedy (COMQ, section 3.2): by descending |x_j| |w_j|. blocks: columns by descending |x_j|, cut into
    blocks, each taken greedily."""
    power = np.sqrt(np.diag(h))
    greedily = lambda columns: columns[np.argsort(-(power * np.abs(w_row))[columns], kind="stable")]
    if order == "natural":
        return np.arange(len(h))
    if order == "greedy":
        return greedily(np.arange(len(h)))
    by_power = np.argsort(-power, kind="stable")
    return np.concatenate([greedily(by_power[i : i + block]) for i in range(0, len(h), block)])


def closed_form_scale(h, w_row, levels):
    """COMQ, section 3: delta = <X q, X w> / |X q|^2 for integer levels q (code - zero point)."""
    return (levels @ h @ w_row) / (levels @ h @ levels)


def descend(w, h, start, options, sweeps=1, order="natural", refit="none", start_at_target=False, refit_last=True,
            dead=None, hysteresis=0.0):
    """Sweeps over the codes of `start`, an Affine with one grid per row or per group of columns.

    start_at_target: begin at q = w (COMQ's start), so that the first sweep is error-feedback rounding; otherwise at the given
    codes (polish). refit: none; row (one grid per row: closed form per channel, rounded to binary16, after every sweep);
    layer (one scale for all rows, numerator and denominator summed over rows; the scales of `start` must be equal).
    refit_last: whether the scale is also refitted after the last sweep. dead: columns whose weights start at 0 with
    start_at_target and otherwise keep their codes. hysteresis: a weight that has a code moves only when the best value is
    more than this much of a step beyond the midpoint.
    """
    w = np.asarray(w, float)
    rows, n = w.shape
    margins = Margins(rows)
    scales, zeros, codes = start.scales.copy(), start.zeros.copy(), start.codes.copy()
    spread = lambda a, r: np.repeat(a[r], n // scales.shape[1])
    dead = np.zeros(n, bool) if dead is None else dead
    alive = np.ones(rows, bool)  # rows whose codes still move
    for sweep in range(sweeps):
        for r in np.flatnonzero(alive) if refit == "none" else range(rows):
            s, z = spread(scales, r), spread(zeros, r)
            first = start_at_target and sweep == 0
            q = np.where(dead, 0, w[r]) if first else s * (codes[r] - z)
            before = codes[r].copy()
            residual = (w[r] - q) @ h
            for j in column_order(h, w[r], order):
                if dead[j]:
                    codes[r, j] = z[j] if first else codes[r, j]
                    continue
                target = q[j] + residual[j] / h[j, j]
                if hysteresis and not first:
                    way = abs(target - q[j]) / s[j]
                    margins.note(np.abs(way - 0.5 - hysteresis), [r])
                    if way <= 0.5 + hysteresis:
                        continue
                codes[r, j] = codes_for(target, s[j], z[j], options)
                margins.note(code_margin(target, s[j], z[j], options), [r])
                new = s[j] * (codes[r, j] - z[j])
                residual -= (new - q[j]) * h[j]
                q[j] = new
            alive[r] = first or (codes[r] != before).any()
        if refit == "none" or (sweep + 1 == sweeps and not refit_last):
            continue
        levels = codes - np.repeat(zeros, n // zeros.shape[1], axis=1)
        if refit == "row":
            assert scales.shape[1] == 1
            ideal = np.array([closed_form_scale(h, w[r], levels[r]) for r in range(rows)])[:, None]
        else:
            assert (scales == scales[0, 0]).all()
            ideal = np.full_like(scales, np.sum((levels @ h) * w) / np.sum((levels @ h) * levels))
        margins.note(binary16_tie_distance(ideal) * options.max_code / 4096)
        scales = np.maximum(binary16(ideal), 2.0**-14)
    return Affine(codes, scales, zeros, margins)


def output_gains(w, q, h):
    """quantize/unbias.h: the gain on a row's scales that makes its error orthogonal to its own output,
    E[(w - g q) x . w x] = 0, so g = w H w / q H w; 1 where that is not between 1/2 and 2."""
    gain = np.einsum("ri,ij,rj->r", w, h, w) / np.einsum("ri,ij,rj->r", q, h, w)
    return np.where((gain >= 0.5) & (gain <= 2), gain, 1)


def one_scale_for_all(w, options):
    """Round to nearest with the largest scale of any row for every row: a start for refit="layer"."""
    w = np.asarray(w, float)
    scales, _ = fit_all_groups(w, options)
    scale = np.full_like(scales, scales.max())
    lo = np.minimum(w.min(axis=1, keepdims=True), 0)
    zeros = np.clip(np.rint(-lo / scale), 0, options.max_code)
    margins = Margins(len(w))
    margins.note(tie_distance(-lo / scale))
    margins.note(code_margin(w, scale, zeros, options))
    return Affine(codes_for(w, scale, zeros, options), scale, zeros, margins)


def best_affine_scales(w, h, levels, groups):
    """The scales of all groups of each row together, unrounded: A_gk = c_g H c_k, b_g = c_g H w, s = A^-1 b with c_g the
    levels of group g and zeros elsewhere. What closed_form_scale becomes for several groups."""
    rows, n = levels.shape
    size = n // groups
    result = np.zeros((rows, groups))
    for r in range(rows):
        c = np.zeros((groups, n))
        for g in range(groups):
            c[g, g * size : (g + 1) * size] = levels[r, g * size : (g + 1) * size]
        result[r] = np.linalg.solve(c @ h @ c.T, c @ h @ w[r])
    return result
