"""Small layers with the codes, scales, zero points and biases that tests/support/reference_quantizers.py gives for them.

Weights are drawn row by row until no decision in any case stands nearer than TIE steps to a rounding boundary, so that
float32 arithmetic, too, must give these very codes: the tests that read them need no tolerance. See the README.md beside
the written files.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import reference_billm  # noqa: E402
import reference_descent as descent  # noqa: E402
import reference_quantizers as reference  # noqa: E402
import reference_spqr  # noqa: E402

TIE = 1e-4
JOINT_TIE = 2e-5  # where all rows must be lucky at once
SPQR_TIE = 4e-6  # and where statistics of statistics are rounded; float32 moves weights by some 1e-6 step
# More columns than the solver's blocks hold (128) in one, fewer tokens than columns, so that H is singular without damping.
LAYERS = {
    "narrow": {"rows": 24, "columns": 96, "tokens": 100, "positions": 5, "dead": [13], "offset": 1.5, "seed": 1},
    "wide": {"rows": 12, "columns": 160, "tokens": 48, "positions": 4, "dead": [], "offset": 0.5, "seed": 2},
}
GRID_CASES = [
    {"name": "rtn_w2", "bits": 2},
    {"name": "rtn_w3_symmetric", "bits": 3, "symmetric": True},
    {"name": "rtn_w4_g32", "bits": 4, "group_size": 32},
    {"name": "rtn_w2_g32_shrunk", "bits": 2, "group_size": 32, "range_shrink": 0.85},
    {"name": "rtn_w3_clip", "bits": 3, "clip_search": True},
    {"name": "rtn_w3_clip_shrunk", "bits": 3, "clip_search": True, "range_shrink": 0.9},
]
GPTQ_CASES = [
    {"name": "gptq_w4", "bits": 4},
    {"name": "gptq_w2", "bits": 2},
    {"name": "gptq_w3_symmetric", "bits": 3, "symmetric": True},
    {"name": "gptq_w2_centred", "bits": 2, "centred": True},
    {"name": "gptq_w3_clip", "bits": 3, "clip_search": True},
    {"name": "gptq_w3_g32", "bits": 3, "group_size": 32},
    {"name": "gptq_w2_g32_centred", "bits": 2, "group_size": 32, "centred": True},
    {"name": "gptq_w3_g32_static", "bits": 3, "group_size": 32, "static_groups": True},
    {"name": "gptq_w2_act_order", "bits": 2, "act_order": True},
    {"name": "gptq_w3_g32_act_order", "bits": 3, "group_size": 32, "act_order": True},
    {"name": "gptq_w3_damped", "bits": 3, "damping": 0.1},
]

# Coordinate descent from another case's codes.
DESCENT_CASES = [
    {"name": "polish_w2", "start": "gptq_w2", "sweeps": 2},
    {"name": "polish_w3_g32", "start": "gptq_w3_g32", "sweeps": 3},
    {"name": "polish_w4_greedy", "start": "gptq_w4", "sweeps": 2, "order": "greedy"},
    {"name": "polish_w4_refit", "start": "gptq_w4", "sweeps": 2, "refit": "row"},
    {"name": "descent_w2", "start": "rtn_w2", "sweeps": 2, "start_at_target": True},
    {"name": "descent_w2_refit", "start": "rtn_w2", "sweeps": 3, "start_at_target": True, "refit": "row"},
    {"name": "descent_w2_greedy", "start": "rtn_w2", "sweeps": 2, "start_at_target": True, "order": "greedy"},
    {"name": "descent_w3_blocks", "start": "rtn_w3_clip", "sweeps": 2, "start_at_target": True, "order": "blocks"},
    {"name": "descent_w4_g32", "start": "rtn_w4_g32", "sweeps": 2, "start_at_target": True, "damping": 0.01},
]
CASES = ([{"method": "rtn", **case} for case in GRID_CASES] + [{"method": "gptq", **case} for case in GPTQ_CASES]
         + [{"method": "descent", **case} for case in DESCENT_CASES])
# Rows depend on each other, so these are solved once weights are drawn, and only reported if they come close to a tie.
JOINT_CASES = [
    {"name": "layer_scale_w3", "method": "start", "bits": 3},
    {"name": "descent_w3_layer", "method": "descent", "start": "layer_scale_w3", "sweeps": 2, "start_at_target": True,
     "refit": "layer"},
]
# Rows share statistics. The damping is raised by a few percent until nothing is near a tie.
SPQR_CASES = [
    {"name": "spqr_w4", "bits": 4, "group_size": 16, "damping": 1.0},
    {"name": "spqr_w3_coarse", "bits": 3, "group_size": 32, "damping": 0.1, "stat_bits": 2, "outlier_threshold": 0.5},
    {"name": "spqr_w2", "bits": 2, "group_size": 16, "damping": 0.5, "outlier_threshold": 1.5},
]
# Error feedback that also makes up for drift; the damping is raised in the same way.
GPTAQ_CASES = [
    {"name": "gptaq_w3", "bits": 3, "damping": 0.1, "alpha": 1.0},
    {"name": "gptaq_w2_g32_centred", "bits": 2, "group_size": 32, "centred": True, "damping": 0.1, "alpha": 0.25},
    {"name": "gptaq_w3_g32_act_order", "bits": 3, "group_size": 32, "act_order": True, "damping": 0.1, "alpha": 1.0},
]
COMPENSATED = ("rtn_w2", "gptq_w2_centred")
BILLM_CASES = [{"name": "billm_32", "block_size": 32}, {"name": "billm_128", "block_size": 128}]


def inputs(layer):
    """A few shared directions, an offset, noise; the float model's inputs differ by a small linear map and a shift. residual
    [tokens, rows] stands for what the residual stream has lost."""
    random = np.random.default_rng(layer["seed"])
    n, tokens, shared = layer["columns"], layer["tokens"], 6
    x = (random.normal(size=(tokens, shared)) @ random.normal(size=(shared, n)) + layer["offset"] * random.normal(size=n)
         + 0.3 * random.normal(size=(tokens, n)))
    positions = np.arange(tokens) % layer["positions"]
    x[positions == 0] += random.normal(size=n)  # the first token of a text stands apart
    x_float = x + 0.2 * (x @ random.normal(size=(n, n))) / np.sqrt(n) + 0.1 * random.normal(size=n)
    for column in layer["dead"]:
        x[:, column] = x_float[:, column] = 0
    residual = 0.05 * (x[:, : layer["rows"]] + random.normal(size=(tokens, layer["rows"])) + 1)
    f32 = lambda a: a.astype(np.float32)
    return f32(x), f32(x_float), f32(residual), positions.astype(np.int32), random


def draw_row(random, layer):
    """Gaussian with a few large weights, of the size that trained layers have; dead inputs' weights among the large."""
    row = 0.03 * random.normal(size=layer["columns"])
    row[random.integers(len(row), size=2)] *= 4
    row[layer["dead"]] *= random.choice([1, 6])
    return row.astype(np.float32)


def options_of(case):
    names = ("bits", "group_size", "symmetric", "clip_search", "range_shrink")
    return reference.GridOptions(**{key: case[key] for key in names if key in case})


def arguments(case, *names):
    return {name: case[name] for name in names if name in case}


def origin_of(case):
    """The case whose grid and codes this one starts from; itself where it starts from nothing."""
    return next(other for other in CASES + JOINT_CASES if other["name"] == case.get("start", case["name"]))


def solve(case, w, x):
    """The reference's answer; its margins include those of the case it starts from."""
    if case["method"] == "rtn":
        return reference.rtn(w, options_of(case))
    if case["method"] == "start":
        return descent.one_scale_for_all(w, options_of(case))
    h, dead = reference.activation_curvature(x, case.get("centred", False))
    if case["method"] == "gptq":
        return reference.gptq(w, h, dead, options_of(case), **arguments(case, "damping", "act_order", "static_groups"))
    origin = origin_of(case)
    if "damping" in case:
        h = h + case["damping"] * np.diag(h).mean() * np.eye(len(h))
    start = solve(origin, w, x)
    solution = descent.descend(w, h, start, options_of(origin),
                               dead=dead, hysteresis=2**-10,
                               **arguments(case, "sweeps", "order", "refit", "start_at_target"))
    solution.margins.note(start.margins.row)
    return solution


def weights_without_ties(layer, x, random):
    """W for which every case's decisions keep TIE away from a boundary. Rows are independent in all of these methods."""
    w = np.stack([draw_row(random, layer) for _ in range(layer["rows"])])
    rows = np.arange(len(w))
    while len(rows):
        good = np.ones(len(rows), bool)
        for case in CASES:
            if good.any():
                good[good] = solve(case, w[rows[good]], x).margins.row >= TIE
        rows = rows[~good]
        for row in rows:
            w[row] = draw_row(random, layer)
    return w


def put_spqr(tensors, case, w, x):
    """Adds the case's tensors; returns the case with the damping that was used."""
    h, dead = reference.activation_curvature(x)
    for step in range(100):
        damping = case["damping"] * (1 + step / 64)
        solution = reference_spqr.spqr(w, h, dead, case["bits"], case["group_size"], damping=damping,
                                       stat_bits=case.get("stat_bits", 3), threshold=case.get("outlier_threshold", 0.2))
        if solution.margins.row.min() >= SPQR_TIE:
            break
    else:
        raise SystemExit(f"{case['name']}: no damping keeps all decisions away from ties")
    for key in ("codes", "scale_codes", "zero_codes", "outlier"):
        tensors[f"{case['name']}.{key}"] = getattr(solution, key).astype(np.uint8)
    tensors[case["name"] + ".stats"] = solution.stats.astype(np.float32)
    tensors[case["name"] + ".values"] = solution.values[solution.outlier].astype(np.float32)
    return {"method": "spqr", **case, "damping": damping}


def put_gptaq(tensors, case, w, x, x_float):
    """Adds the case's tensors; returns the case with the damping that was used."""
    centred = case.get("centred", False)
    x, x_float = x.astype(float), x_float.astype(float)
    h, dead = reference.activation_curvature(x, centred)
    if centred:
        coupling = (x_float - x_float.mean(axis=0) - x + x.mean(axis=0)).T @ (x - x.mean(axis=0)) / len(x)
    else:
        coupling = (x_float - x).T @ x / len(x)
    for step in range(100):
        damping = case["damping"] * (1 + step / 64)
        solution = reference.gptq(w, h, dead, options_of(case), damping=damping, coupling=coupling, alpha=case["alpha"],
                                  **arguments(case, "act_order"))
        if solution.margins.row.min() >= JOINT_TIE:
            break
    else:
        raise SystemExit(f"{case['name']}: no damping keeps all decisions away from ties")
    tensors[case["name"] + ".codes"] = solution.codes.astype(np.uint8)
    tensors[case["name"] + ".zeros"] = solution.zeros.astype(np.uint8)
    tensors[case["name"] + ".scales"] = solution.scales.astype(np.float32)
    return {"method": "gptaq", **case, "damping": damping}


def billm_facts(case, w, x):
    """What is left to choose freely keeps codes from being compared; how good they are and the first block's salient columns,
    which are chosen on the weights as given, can be."""
    h, dead = reference.activation_curvature(x)
    q, salient = reference_billm.billm(w, h, dead, case["block_size"])
    return {"method": "billm", "bits": 1, **case, "objective": reference.objective(w, q, h), "distance": float(((w - q) ** 2).sum()),
            "salient": [int(j) for j in np.flatnonzero(salient[: case["block_size"]])]}


def put_compensation(put, facts, w, q, x, x_float, positions):
    """The biases and what they leave: E|W x_f - Q x - c|^2 / E|W x|^2 with W x_f taken to differ from W x by its mean."""
    channel, drift = reference.compensation(w, q, x), reference.compensation(w, q, x, x_float)
    put("channel", channel)
    put("drift", drift)
    put("position", reference.position_compensation(w, q, x, positions))
    facts["error_before"] = reference.relative_error(w, q, x)
    facts["error_after"] = reference.relative_error(w, q, x, channel)
    shift = drift - channel
    facts["drift_error_before"] = reference.relative_error(w, q, x, -shift)
    facts["drift_error_after"] = reference.relative_error(w, q, x, drift - shift)


def write_layer(out_dir, name, layer):
    cases = []
    x, x_float, residual, positions, random = inputs(layer)
    w = weights_without_ties(layer, x, random)
    tensors = {"x": x, "x_float": x_float, "residual": residual, "positions": positions, "weight": w}
    for case in CASES + JOINT_CASES:
        cases.append({"bits": options_of(origin_of(case)).bits, **case})
        solution = solve(case, w, x)
        if solution.margins.row.min() < JOINT_TIE:
            raise SystemExit(f"{name}, {case['name']}: a decision within {solution.margins.row.min():.1e} of a tie; change the seed")
        put = lambda key, value, dtype=np.float32: tensors.__setitem__(f"{case['name']}.{key}", np.asarray(value, dtype))
        put("codes", solution.codes, np.uint8)
        put("zeros", solution.zeros, np.uint8)
        put("scales", solution.scales)
        q = solution.decoded()
        if case["name"] in COMPENSATED:
            h = reference.activation_curvature(x, case.get("centred", False))[0]
            put("gains", descent.output_gains(w.astype(float), q, h))
            put_compensation(put, cases[-1], w, q, x, x_float, positions)
    cases += [put_spqr(tensors, case, w, x) for case in SPQR_CASES]
    cases += [put_gptaq(tensors, case, w, x, x_float) for case in GPTAQ_CASES]
    cases += [billm_facts(case, w, x) for case in BILLM_CASES]
    for key, centred in (("target", False), ("target_centred", True)):
        tensors[key] = reference.asymmetric_target(w, x_float, x, centred=centred).astype(np.float32)
        tensors[key + "_residual"] = reference.asymmetric_target(w, x_float, x, centred=centred,
                                                                 residual=residual).astype(np.float32)
    (out_dir / f"{name}.safetensors").write_bytes(save(tensors))
    return {**layer, "cases": cases}


def main(out_dir):
    folder = Path(out_dir) / "quantize"
    folder.mkdir(parents=True, exist_ok=True)
    index = {name: write_layer(folder, name, layer) for name, layer in LAYERS.items()}
    (folder / "cases.json").write_text(json.dumps(index, indent=1) + "\n")
