"""Activation grids and the guided distance by tests/support/reference_activations.py, on values of a softmax, a GELU and a norm."""

import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import reference_activations as reference  # noqa: E402

TOKENS, WIDTH, OUTPUTS = 24, 16, 12


def cases():
    for bits in (4, 6, 8):
        last, half = 2**bits - 1, 2 ** (bits - 1)
        yield "norm", {"kind": "affine", "bits": bits, "step": 6.1 / last, "zero_point": half - 1}
        yield "norm", {"kind": "affine", "bits": bits, "step": 3.7 / last, "zero_point": half // 2}
        yield "gelu", {"kind": "twin_sign", "bits": bits, "step": 0.17 / half, "shift": 5}
        yield "gelu", {"kind": "twin_sign", "bits": bits, "step": 0.09 / half, "shift": 3}
        for shift in (2, 5):
            yield "softmax", {"kind": "twin_size", "bits": bits, "step": 1 / (half - 1) / 2**shift, "shift": shift}
        for per_octave in (1, 2):
            yield "softmax", {"kind": "logarithm", "bits": bits, "step": 0.81, "per_octave": per_octave}


def rounded(x, grid):
    rest = {key: value for key, value in grid.items() if key != "kind"}
    return getattr(reference, grid["kind"])(x, **rest)


def main(out_dir):
    random = np.random.default_rng(11)
    logits = random.normal(size=(TOKENS, WIDTH)) * 2
    norm = random.normal(size=(TOKENS, WIDTH)) * np.exp(random.normal(size=WIDTH))
    values = {
        "norm": norm,
        "gelu": norm * (1 + np.vectorize(math.erf)(norm / math.sqrt(2))) / 2,
        "softmax": np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
    }
    values = {name: x.astype(np.float32) for name, x in values.items()}
    weight = random.normal(size=(OUTPUTS, WIDTH)).astype(np.float32)
    squares = (random.normal(size=(TOKENS, OUTPUTS)) ** 2).astype(np.float32)
    tensors, facts = {**values, "weight": weight, "squares": squares}, []
    for index, (name, grid) in enumerate(cases()):
        grid["step"] = float(np.float32(grid["step"]))
        x = values[name].astype(np.float64)
        tensors[f"{index}.rounded"] = rounded(x, grid).astype(np.float32)
        # Neither a tie nor a value between two ranges may decide differently in float32.
        moved = [rounded(x * (1 + sign * 1e-5), grid) for sign in (-1, 1)]
        tensors[f"{index}.sure"] = (np.abs(moved[0] - moved[1]) < 1e-9).astype(np.uint8)
        distance = reference.guided_distance(x, tensors[f"{index}.rounded"].astype(np.float64), weight.astype(np.float64), squares)
        facts.append({"values": name, **grid, "distance": distance})
    folder = Path(out_dir) / "quantize"
    (folder / "activations.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "activations.safetensors").write_bytes(save(tensors))


if __name__ == "__main__":
    main(*sys.argv[1:])
