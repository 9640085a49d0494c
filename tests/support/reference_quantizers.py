"""Quantization methods as their papers write them: numpy, float64, one function per method, no cleverness.

Written from the papers alone, so that goldens made with it (tools/golden_quantizers.py) can contradict the product. Where a
paper leaves open what decides a code, the choice is an argument whose default is what the product's headers document.

Shapes: W [out, in] weights; X [tokens, in] inputs; H [in, in] = E[x x^T]; a Grid holds [out, groups].
Every rounding notes how far it was from a tie (class Margins), so that a caller can tell codes that float32 must reproduce
from codes that it may not.
"""

from dataclasses import dataclass, field

import numpy as np

SMALLEST_SCALE = 2.0**-14  # of the normal binary16 numbers: what the product stores


class Margins:
    """Least distance of every row's decisions from a tie, in steps of the weight's grid: how wrong a weight may be before a
    decision falls otherwise."""

    def __init__(self, rows):
        self.row = np.full(rows, np.inf)

    def note(self, distance, rows=slice(None)):
        distance = np.asarray(distance, float)
        self.row[rows] = np.minimum(self.row[rows], distance.reshape(len(self.row[rows]), -1).min(axis=1))


def tie_distance(x):
    """Distance from the next half-integer."""
    return 0.5 - np.abs(x - np.rint(x))


def binary16(x):
    return np.asarray(x, float).astype(np.float16).astype(float)


def binary16_tie_distance(x):
    """Distance from the middle between two neighbouring binary16 numbers, in units of their distance."""
    ulp = np.spacing(np.abs(np.asarray(x, float)).astype(np.float16)).astype(float)
    return tie_distance(x / ulp)


# ---- uniform grids -------------------------------------------------------------------------------------------------------


@dataclass
class GridOptions:
    bits: int
    group_size: int = 0  # 0: the whole row
    symmetric: bool = False
    clip_search: bool = False
    range_shrink: float = 1.0

    @property
    def max_code(self):
        return 2**self.bits - 1


def grid_of_range(lo, hi, options, margins=None, rows=slice(None), exact=True):
    """GPTQ, released code: s = (hi - lo) / (2^b - 1), z = round(-lo / s), with lo <= 0 <= hi.

    Differs, as quantize/affine_fit.h says: s is rounded to binary16 first (never below its normal numbers), z is chosen for
    the rounded s. Symmetric: the range is -a ... a with a the largest magnitude, z = 2^(b-1).
    exact: lo and hi are weights as given, so that only float32's own rounding (some 2e-4 of binary16's spacing) can move s.
    Otherwise an error of m steps in a weight moves s by up to 2 m / (2^b - 1) of itself, 2^-11 of which may be the spacing.
    """
    if options.symmetric:
        a = np.maximum(-lo, hi)
        lo, hi = -a, a
    ideal = (hi - lo) / options.max_code
    scale = np.maximum(binary16(ideal), SMALLEST_SCALE)
    zero = np.clip(np.rint(-lo / scale), 0, options.max_code)
    if options.symmetric:
        zero = np.full_like(zero, 2 ** (options.bits - 1))
    if margins is not None:
        margins.note(binary16_tie_distance(ideal) * (0.25 if exact else options.max_code / 4096), rows)
        if not options.symmetric:
            margins.note(tie_distance(-lo / scale), rows)
    return scale, zero


def codes_for(w, scale, zero, options):
    """q = clamp(round(w / s) + z, 0, 2^b - 1), half to even."""
    return np.clip(np.rint(w / scale) + zero, 0, options.max_code)


def code_margin(w, scale, zero, options):
    """Tie distance of the code; a weight clamped by more than half a step is no tie."""
    position = w / scale + zero
    beyond = np.maximum(-position, position - options.max_code)
    return np.where(beyond > 0, 1.0, tie_distance(w / scale))


def fit_grid(w, options, margins=None, exact=True):
    """One grid for each row of w [rows, columns of the group]: (scale [rows], zero [rows]).

    Clip search (GPTQ, released code): ranges shrunk by 1 - i/100, i = 0 ... 79; the first with the least sum |w - Q|^2.4.
    """
    w = np.asarray(w, float)
    lo = np.minimum(w.min(axis=1), 0) * options.range_shrink
    hi = np.maximum(w.max(axis=1), 0) * options.range_shrink
    if not options.clip_search:
        return grid_of_range(lo, hi, options, margins, exact=exact)
    candidates, errors = [], []
    for i in range(80):
        scale, zero = grid_of_range(lo * (1 - i / 100), hi * (1 - i / 100), options)
        value = scale[:, None] * (codes_for(w, scale[:, None], zero[:, None], options) - zero[:, None])
        candidates.append((scale, zero))
        errors.append((np.abs(w - value) ** 2.4).sum(axis=1))
    errors = np.array(errors)  # [80, rows]
    best = errors.argmin(axis=0)
    rows = np.arange(len(w))
    scale = np.array([c[0] for c in candidates])[best, rows]
    zero = np.array([c[1] for c in candidates])[best, rows]
    if margins is not None:
        # Another candidate as good, unless it is the same grid; and the chosen grid must not itself be a tie.
        lead = np.full(len(w), np.inf)
        for i, (s, z) in enumerate(candidates):
            other = (s != scale) | (z != zero)
            lead = np.where(other, np.minimum(lead, errors[i] / errors[best, rows] - 1), lead)
        margins.note(lead * 10)  # sums of powers in float32 are good to some 1e-6
        for i in np.unique(best):
            rows_here = np.flatnonzero(best == i)
            grid_of_range(lo[rows_here] * (1 - i / 100), hi[rows_here] * (1 - i / 100), options, margins, rows_here)
    return scale, zero


@dataclass
class Affine:
    """Codes and grids of one matrix: W ~ scale (code - zero)."""

    codes: np.ndarray  # [out, in]
    scales: np.ndarray  # [out, groups]
    zeros: np.ndarray  # [out, groups]
    margins: Margins = None
    extra: dict = field(default_factory=dict)

    @property
    def group_size(self):
        return self.codes.shape[1] // self.scales.shape[1]

    def decoded(self):
        spread = lambda a: np.repeat(a, self.group_size, axis=1)
        return spread(self.scales) * (self.codes - spread(self.zeros))


def groups_of(columns, options):
    size = options.group_size or columns
    assert columns % size == 0
    return size, columns // size


def fit_all_groups(w, options, margins=None, exact=True):
    size, groups = groups_of(w.shape[1], options)
    fits = [fit_grid(w[:, g * size : (g + 1) * size], options, margins, exact) for g in range(groups)]
    return np.stack([s for s, _ in fits], axis=1), np.stack([z for _, z in fits], axis=1)


def rtn(w, options):
    """Round to nearest on each group's grid."""
    w = np.asarray(w, float)
    margins = Margins(len(w))
    size, _ = groups_of(w.shape[1], options)
    scales, zeros = fit_all_groups(w, options, margins)
    s, z = np.repeat(scales, size, axis=1), np.repeat(zeros, size, axis=1)
    margins.note(code_margin(w, s, z, options))
    return Affine(codes_for(w, s, z, options), scales, zeros, margins)


# ---- curvature -----------------------------------------------------------------------------------------------------------


def activation_curvature(x, centred=False):
    """(H, dead): H = E[x x^T] (GPTQ, section 3.3, up to a factor), or the covariance E[x x^T] - E[x] E[x]^T; dead inputs
    are those that are always zero."""
    x = np.asarray(x, float)
    moment = x.T @ x / len(x)
    mean = x.mean(axis=0)
    return (moment - np.outer(mean, mean) if centred else moment), np.diag(moment) == 0


def output_adaptive_curvature(x, dy, sample):
    """OAC (2405.15025): H = 1/N sum_i G_i^T G_i with G_i [out, in] = sum over the tokens t of sample i of dy_t x_t^T, the
    gradient of the sample's loss with respect to W. dy [tokens, out]; sample [tokens]: index of each token's sample."""
    x, dy = np.asarray(x, float), np.asarray(dy, float)
    samples = np.unique(sample)
    h = np.zeros((x.shape[1], x.shape[1]))
    for i in samples:
        g = dy[sample == i].T @ x[sample == i]
        h += g.T @ g
    return h / len(samples)


def guided_curvature(x, dy, output_groups=1):
    """GuidedQuant (2505.07004, section 3.2): H_k = X diag(s_k) X^T / tokens, s_k[t] = mean over outputs j of group k of
    dy_tj^2. Returns [output_groups, in, in]."""
    x, dy = np.asarray(x, float), np.asarray(dy, float)
    edges = [k * dy.shape[1] // output_groups for k in range(output_groups + 1)]
    strengths = [(dy[:, first:last] ** 2).mean(axis=1) for first, last in zip(edges, edges[1:])]
    return np.stack([(x * strength[:, None]).T @ x / len(x) for strength in strengths])


def damped(h, dead, damping=0.01, dead_diagonal=1.0):
    """GPTQ, released code: H_jj = 1 for dead inputs, then H + damping mean(diag H) I. The 1 stands in the mean, so the
    result depends a little on H's scale (here E[x x^T], in the released code 2 E[x x^T])."""
    h = np.array(h, float)
    h[dead, dead] = dead_diagonal
    return h + damping * np.diag(h).mean() * np.eye(len(h))


def inverse_factor(h):
    """U, upper triangular, with H^-1 = U^T U (GPTQ, section 3.3, step 3)."""
    return np.linalg.cholesky(np.linalg.inv(h)).T


# ---- GPTQ ----------------------------------------------------------------------------------------------------------------


def gptq(w, h, dead, options, damping=0.01, act_order=False, static_groups=False, dead_in_range=True, coupling=None,
         alpha=0.25):
    """GPTQ (2210.17323, algorithm 1): columns in turn, e = (w_i - q_i) / U_ii, w_j -= e U_ij for j > i.

    act_order: columns by descending diag H, grids fitted on the original weights. static_groups: the same without the
    reordering. Otherwise a group's grid is fitted when its first column comes, on weights that hold all earlier errors.
    dead_in_range: whether the weights of dead inputs, which are zeroed, count in the range of a grid.
    coupling: E[(x_float - x) x^T] makes it GPTAQ (2504.02692, section 3.3): P = alpha ((dX X^T U^T) masked to its strict
    upper triangle) U, and every column also adds w_i P_i: to the columns behind it, w_i being its current weight. Grids are
    then fitted on the weights as they would come to be rounded if no rounding erred from there on, as quantize/gptaq.h says.
    """
    w = np.array(w, float)
    out, n = w.shape
    margins = Margins(out)
    size, groups = groups_of(n, options)
    fixed = static_groups or act_order
    if dead_in_range:
        fitted_on = w.copy()
        w[:, dead] = 0
    else:
        w[:, dead] = 0
        fitted_on = w.copy()
    order = np.argsort(-np.where(dead, 1.0, np.diag(h)), kind="stable") if act_order else np.arange(n)
    h = damped(h, dead, damping)[np.ix_(order, order)]
    u = inverse_factor(h)
    p = np.zeros_like(u)
    if coupling is not None:
        p = alpha * np.triu(np.asarray(coupling, float)[np.ix_(order, order)] @ u.T, 1) @ u

    def foreseen(w, first):
        """w once the drift of the columns from first on has been fed forward."""
        w = w.copy()
        for k in range(first, n):
            w[:, k + 1 :] += np.outer(w[:, k], p[k, k + 1 :])
        return w

    scales, zeros = np.zeros((out, groups)), np.zeros((out, groups))
    if fixed or groups == 1:  # one group per row: fitted before anything is lost
        fitted_on[:, order] = foreseen(fitted_on[:, order], 0)
        scales, zeros = fit_all_groups(fitted_on, options, margins, exact=coupling is None)
    codes = np.zeros((out, n))
    w = w[:, order]
    for i in range(n):
        column = order[i]
        g = column // size
        if not fixed and groups > 1 and column % size == 0:
            ahead = foreseen(w, i)[:, i : i + size]
            scales[:, g], zeros[:, g] = fit_grid(ahead, options, margins, exact=i == 0 and coupling is None)
        s, z = scales[:, g], zeros[:, g]
        codes[:, column] = codes_for(w[:, i], s, z, options)
        margins.note(np.where(dead[column], 1.0, code_margin(w[:, i], s, z, options)))
        error = (w[:, i] - s * (codes[:, column] - z)) / u[i, i]
        w[:, i + 1 :] += np.outer(w[:, i], p[i, i + 1 :]) - np.outer(error, u[i, i + 1 :])
    return Affine(codes, scales, zeros, margins)


def objective(w, q, h):
    """sum over rows d of W - Q of d H d^T: what GPTQ and coordinate descent minimize."""
    d = np.asarray(w, float) - q
    return float(np.einsum("ri,ij,rj->", d, h, d))


# ---- float inputs on one side: targets and corrections -------------------------------------------------------------------


def asymmetric_target(w, x_float, x, damping=0.01, centred=False, residual=None):
    """Weights whose plain GPTQ problem is, up to a constant, E|W x_f - Q x|^2: W' = W + W (G - H) (H + lambda I)^-1 with
    G = E[x_f x^T], H = E[x x^T] (both centred where the bias takes the means), lambda = damping mean(diag H).
    Setting the derivative of E|W x_f - Q x|^2 to zero gives Q H = W G; the damped form leaves W alone where x_f = x.
    residual: [tokens, out] to be added to what is wanted, W x_f: then Q H = W G + E[residual x^T]."""
    residual = np.zeros((len(x), len(w))) if residual is None else np.asarray(residual, float)
    x_float, x = np.asarray(x_float, float), np.asarray(x, float)
    if centred:
        x_float, x, residual = (a - a.mean(axis=0) for a in (x_float, x, residual))
    h, g = x.T @ x / len(x), x_float.T @ x / len(x)
    dead = np.diag(h) == 0
    return w + (w @ (g - h) + residual.T @ x / len(x)) @ np.linalg.inv(damped(h, dead, damping))


def ridge_correction(w, q, b, x_float, x, damping=0.01, damp_bias=False):
    """Weights and bias corrected together (ERQ, 2407.06794, section 3.2, with the constant input added):
    [dW, db] = E[(y_f - y) [x, 1]^T] (E[[x, 1] [x, 1]^T] + lambda I)^-1, y_f = W x_f + b, y = Q x + b,
    lambda = damping mean(diag E[x x^T]). The constant input is damped only on demand: nothing speaks against moving b."""
    x_float, x = np.asarray(x_float, float), np.asarray(x, float)
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    residual = x_float @ np.asarray(w, float).T - x @ np.asarray(q, float).T
    h = ones.T @ ones / len(x)
    lam = damping * np.mean(np.diag(h)[:-1])
    h += lam * np.diag([1.0] * x.shape[1] + [float(damp_bias)])
    delta = residual.T @ ones / len(x) @ np.linalg.inv(h)
    return delta[:, :-1], np.asarray(b, float) + delta[:, -1]


# ---- bias compensation ---------------------------------------------------------------------------------------------------


def compensation(w, q, x, x_float=None):
    """2404.01892, section 3: the constant that minimizes E|y - (y_q + c)|^2 is the mean error. With the same input on both
    sides c = (W - Q) E[x]; against the float model's input c = W E[x_float] - Q E[x]."""
    w, mean = np.asarray(w, float), np.asarray(x, float).mean(axis=0)
    float_mean = mean if x_float is None else np.asarray(x_float, float).mean(axis=0)
    return w @ float_mean - q @ mean


def position_compensation(w, q, x, positions):
    """c_p = (W - Q) (E[x | p] - E[x]), [positions, out]: what a position's mean error has beyond the channel's."""
    w, x = np.asarray(w, float), np.asarray(x, float)
    mean = x.mean(axis=0)
    return np.stack([(w - q) @ (x[positions == p].mean(axis=0) - mean) for p in range(positions.max() + 1)])


def relative_error(w, q, x, c=0.0):
    """E|(W - Q) x - c|^2 / E|W x|^2."""
    w, x = np.asarray(w, float), np.asarray(x, float)
    return float((((x @ (w - q).T) - c) ** 2).sum() / ((x @ w.T) ** 2).sum())
