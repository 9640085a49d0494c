"""BiLLM (2402.04291): signs with a few scales per row and block of columns. numpy, float64.

Choices that the paper leaves open or that quantize/methods/billm.h documents are arguments.
"""

import numpy as np

from reference_quantizers import binary16, damped, inverse_factor


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def one_stage(w):
    """Equation 5 with the mean taken out: (mean, scale, value of every weight). mean |w - mean| is the best scale for signs."""
    if len(w) == 0:
        return 0.0, 0.0, w
    mean = w.mean()
    scale = np.abs(w - mean).mean()
    return mean, scale, mean + scale * sign(w - mean)


def residual(w):
    """Equation 9: the residual of the first stage is binarized again. (mean, scale 1, scale 2, values)."""
    if len(w) == 0:
        return 0.0, 0.0, 0.0, w
    mean, scale1, first = one_stage(w)
    scale2 = np.abs(w - first).mean()
    return mean, scale1, scale2, first + scale2 * sign(w - first)


def best_split(w):
    """Section 3.4: two one-stage groups of small and large magnitudes, split where the squared error is least, 10 ... 90 % of
    the magnitudes in whole percents. (inner mean, scale, outer mean, scale)."""
    if len(w) == 0:
        return (0.0, 0.0, 0.0, 0.0)
    magnitude = np.abs(w)
    best = (np.inf, None)
    for percent in range(10, 91):
        inner = magnitude <= np.percentile(magnitude, percent)
        a, b = one_stage(w[inner]), one_stage(w[~inner])
        error = ((w[inner] - a[2]) ** 2).sum() + ((w[~inner] - b[2]) ** 2).sum()
        if error < best[0]:
            best = (error, (a[0], a[1], b[0], b[1]))
    return best[1]


def salient_count(part, ranked, most):
    """As many of the most salient columns as leave the least |W - Q|^2, the others binarized in one stage."""
    errors = []
    for count in range(1, most + 1):
        salient, others = part[:, ranked[:count]], part[:, ranked[count:]]
        error = sum(((row - residual(row)[3]) ** 2).sum() for row in salient)
        errors.append(error + sum(((row - one_stage(row)[2]) ** 2).sum() for row in others))
    return 1 + int(np.argmin(errors))


def settled(w, levels, rounds=1):
    """Levels moved to where the weights nearest to them want them, pairs keeping the form mean +- scale."""
    for _ in range(rounds):
        chosen = np.abs(w[:, None] - levels).argmin(axis=1)
        for pair in ((0, 1), (2, 3)):
            mine = (chosen == pair[0]) | (chosen == pair[1])
            if mine.any() and (chosen == pair[0]).any() and (chosen == pair[1]).any():
                # least squares of mean + s * scale over the weights of the pair, s = -1 or +1
                s = np.where(chosen[mine] == pair[1], 1.0, -1.0)
                scale, mean = np.polyfit(s, w[mine], 1)
                levels[list(pair)] = mean - scale, mean + scale
    return levels


def billm(w, h, dead, block_size=128, damping=0.01, most_salient=49, settle=1):
    """Columns in turn with error feedback; a block's salient columns, means and scales are fixed when its first column comes, on
    weights that hold all earlier errors. Returns the decoded weights [out, in] and the salient columns [in]."""
    w = np.array(w, float)
    rows, n = w.shape
    w[:, dead] = 0
    u = inverse_factor(damped(h, dead, damping))
    q, salient = np.zeros_like(w), np.zeros(n, bool)
    for j in range(n):
        if j % block_size == 0:
            end = min(j + block_size, n)
            part = w[:, j:end]
            saliency = (part**2 / np.diag(u)[j:end] ** 2).sum(axis=0)
            ranked = np.argsort(-saliency, kind="stable")
            count = salient_count(part, ranked, min(most_salient, end - j - 1))
            salient[j + ranked[:count]] = True
            plain, double = [], []
            for row in range(rows):
                mean, a, b, _ = residual(part[row, ranked[:count]])
                double.append(binary16([mean - a - b, mean - a + b, mean + a - b, mean + a + b]))
                others = part[row, ranked[count:]]
                m0, s0, m1, s1 = best_split(others)
                plain.append(binary16(settled(others, np.array([m0 - s0, m0 + s0, m1 - s1, m1 + s1]), settle)))
            plain, double = np.array(plain), np.array(double)
        levels = double if salient[j] else plain
        q[:, j] = levels[np.arange(rows), np.abs(w[:, j : j + 1] - levels).argmin(axis=1)]
        w[:, j + 1 :] -= np.outer((w[:, j] - q[:, j]) / u[j, j], u[j, j + 1 :])
    return q, salient
