#!/usr/bin/env python3
"""Quantizes a small OPT model a second time, in float64 and by the references of tests/support, and compares every layer with what
`ballast quantize` wrote: the walk over the blocks, not only the single layers.

usage: check_walk.py BALLAST MODEL_DIR TEXT [--tokens N] [--bits B] [--group-size G] [--method rtn|gptq]
                     [--compensate none|channel|joint] [--correct-drift] [--asymmetric] [--damping X]

The calibration text is a piece of TEXT that is exactly N tokens long, so that both see the same one window. Every layer is
computed from what the product stored for the layers before it, so layers are judged one by one. Codes agree up to ties of float32
arithmetic, of which one changes the rest of its row; biases agree to binary16. Fails where fewer than 95 % of the codes are the
same or a bias is further away. Needs torch, transformers, safetensors.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, OPTConfig
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import check_quantized  # noqa: E402
import reference_quantizers as reference  # noqa: E402


def half_rows(hidden):
    """Hidden states, and the inputs of out_proj and fc2 once they were seen, as calibration keeps them: binary16 with a power of two per row that brings the largest
    magnitude into [2^14, 2^15) (kernels/ops/half_rows.h)."""
    largest = np.abs(hidden).max(axis=1, keepdims=True)
    scale = 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1))) - 14)
    return reference.binary16(hidden / scale) * scale


class Block:
    """One pre-norm decoder layer with its weights in float64; a linear may be replaced."""

    def __init__(self, tensors, prefix, heads):
        self.linear = {name: (tensors[f"{prefix}{name}.weight"], tensors[f"{prefix}{name}.bias"])
                       for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")}
        self.norm = {name: (tensors[f"{prefix}{name}.weight"], tensors[f"{prefix}{name}.bias"])
                     for name in ("self_attn_layer_norm", "final_layer_norm")}
        self.heads = heads

    def apply(self, name, x):
        weight, bias = self.linear[name]
        return x @ weight.T + bias

    def normed(self, name, h):
        weight, bias = self.norm[name]
        centred = h - h.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * weight + bias

    def attention(self, x):
        """What out_proj reads."""
        tokens, hidden = x.shape
        split = lambda a: a.reshape(tokens, self.heads, -1).transpose(1, 0, 2)
        q, k, v = (split(self.apply(f"self_attn.{name}_proj", x)) for name in "qkv")
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(hidden / self.heads)
        scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return (weights @ v).transpose(1, 0, 2).reshape(tokens, hidden)

    # The four inputs in order: (linears that share it, from what it is computed, by which function)
    def steps(self):
        qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        return [(qkv, lambda h, x: self.normed("self_attn_layer_norm", h), None),
                (("self_attn.out_proj",), lambda h, x: self.attention(x), "self_attn.out_proj"),
                (("fc1",), lambda h, x: self.normed("final_layer_norm", h), None),
                (("fc2",), lambda h, x: np.maximum(self.apply("fc1", x), 0), "fc2")]


def piece_of(tokenizer, text, count):
    """A string that is `count` tokens long without a leading special token."""
    encode = lambda s: tokenizer(s, add_special_tokens=False)["input_ids"]
    ids = encode(text)[:count]
    piece = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if encode(piece) != ids:
        sys.exit(f"the first {count} tokens of the text do not encode to themselves; try another --tokens")
    return piece, ids


def quantize(arguments, w, x, x_float, residual):
    """The reference's Affine of one linear."""
    joint = arguments.compensate == "joint"
    h, dead = reference.activation_curvature(x, joint)
    options = reference.GridOptions(arguments.bits, arguments.group_size)
    target = w
    if arguments.asymmetric:
        target = reference.asymmetric_target(w, x_float, x, arguments.damping, joint, residual)
    if arguments.method == "rtn":
        return reference.rtn(target, options)
    return reference.gptq(target, h, dead, options, damping=arguments.damping)


def bias_shift(arguments, w, q, x, x_float, residual):
    if arguments.compensate == "none":
        return np.zeros(len(w))
    shift = reference.compensation(w, q, x, x_float if arguments.correct_drift else None)
    return shift if residual is None else shift + residual.mean(axis=0)


def compare(name, solution, decoded, bias, shift, stored_bias):
    """Prints and judges. A bias may be one binary16 step away, and 1e-4 of the largest shift for float32's sums."""
    step = np.repeat(solution.scales, solution.group_size, axis=1)
    same = np.abs(decoded - solution.decoded()) < 0.25 * step
    allowed = np.spacing(np.abs(bias).astype(np.float16)).astype(float) + 1e-4 * np.abs(shift).max()
    apart = (np.abs(stored_bias - bias) / allowed).max()
    fine = same.mean() >= 0.95 and apart <= 1
    print(f"{name:42} same codes {100 * same.mean():8.4f} %  whole rows {100 * same.all(axis=1).mean():8.3f} %  "
          f"bias apart {apart:.2f} of what is allowed{'' if fine else '  DIFFERS'}", flush=True)
    return fine


def walk(arguments, config, source, ids, quantized):
    tensors = {key: value.numpy().astype(float) for key, value in check_quantized.decode_all(source)[0].items()}
    embed = tensors["model.decoder.embed_tokens.weight"][ids] + tensors["model.decoder.embed_positions.weight"][np.arange(len(ids)) + 2]
    hidden, hidden_float = half_rows(embed), half_rows(embed)
    fine = True
    for i in range(config.num_hidden_layers):
        prefix = f"model.decoder.layers.{i}."
        block, block_float = (Block(tensors, prefix, config.num_attention_heads) for _ in range(2))
        x = x_float = None
        for (names, read, adds), (_, read_float, _) in zip(block.steps(), block_float.steps()):
            x, x_float = read(hidden, x), read_float(hidden_float, x_float)
            residual = hidden_float - hidden if adds and arguments.asymmetric else None
            for name in names:
                w, bias = block.linear[name]
                solution = quantize(arguments, w, x, x_float, residual)
                q, stored_bias = (quantized[f"{prefix}{name}.{part}"].numpy().astype(float) for part in ("weight", "bias"))
                shift = bias_shift(arguments, w, q, x, x_float, residual if arguments.correct_drift else None)
                fine &= compare(prefix + name, solution, q, bias + shift, shift, stored_bias)
                block.linear[name] = (q, stored_bias)
            if adds:
                hidden = half_rows(hidden + block.apply(adds, half_rows(x)))
                hidden_float = half_rows(hidden_float + block_float.apply(adds, half_rows(x_float)))
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ballast")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=0)
    parser.add_argument("--method", choices=("rtn", "gptq"), default="gptq")
    parser.add_argument("--compensate", choices=("none", "channel", "joint"), default="joint")
    parser.add_argument("--correct-drift", action="store_true")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--damping", type=float, default=0.01)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    piece, ids = piece_of(tokenizer, arguments.text.read_text(encoding="utf-8"), arguments.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        text, folder = Path(scratch) / "piece.txt", Path(scratch) / "quantized"
        text.write_text(piece, encoding="utf-8")
        command = [arguments.ballast, "quantize", "-m", arguments.model, "-o", folder, "--bits", arguments.bits, "--group-size",
                   arguments.group_size, "--method", arguments.method, "--compensate", arguments.compensate, "--calibration", text,
                   "--samples", 1, "--length", arguments.tokens, "--quiet",
                   "--correct-drift" if arguments.correct_drift else "--no-correct-drift"]
        command += ["--damping", arguments.damping] if arguments.method == "gptq" else []
        command += ["--asymmetric"] if arguments.asymmetric else []
        subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, check=True)
        quantized = check_quantized.decode_all(folder)[0]
    sys.exit(not walk(arguments, OPTConfig.from_pretrained(arguments.model), arguments.model, ids, quantized))


if __name__ == "__main__":
    main()
