#!/usr/bin/env python3
"""Measures a float model and a folder quantized from it with Hugging Face transformers, and compares with `ballast perplexity`.

usage: check_quantized.py BALLAST FLOAT_DIR TEXT QUANTIZED_DIR... [--dataset text|wikitext2] [--windows N] [--tolerance NATS]

The quantized weights are decoded here from the documented layouts (engine/io/packed.h and quantized.h), by code that shares nothing with the
product, put into a float32 OPT and run on the same windows: one </s> in front of the text, windows of the model's context end to
end, every target scored. Fails when the mean loss of any window differs by more than the tolerance. Needs torch, transformers,
safetensors (versions last used: 2.15, 5.23, 0.8).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM
from transformers.utils import logging


def read_tensors(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def unpack(words, bits, count):
    """[rows, words] of 32 bits -> [rows, count]: a stream of `bits`-wide numbers, low bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint32).view(np.uint8), axis=1, bitorder="little")
    numbers = stream[:, : count * bits].reshape(len(words), count, bits)
    return (numbers.astype(np.int64) << np.arange(bits)).sum(axis=2)


def affine(scale, zero, codes, group_of):
    return (scale * (codes - zero[:, group_of])).astype(np.float32)


def decode_gptq(tensors, name, is_v1):
    """qweight I32 [in bits/32, out], qzeros I32 [G, out bits/32], scales F16 [G, out], g_idx I32 [in]."""
    qweight, qzeros, scales = (tensors[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales"))
    group_of = tensors[f"{name}.g_idx"].numpy()
    out, columns = qweight.shape[1], len(group_of)
    bits = qweight.shape[0] * 32 // columns
    codes = unpack(qweight.T, bits, columns)
    zeros = unpack(qzeros, bits, out).T + is_v1
    scales = scales.astype(np.float64).T
    return affine(scales[:, group_of], zeros, codes, group_of)


def decode_pack_quantized(tensors, name):
    """weight_packed I32 [out, words], weight_scale F16 [out, G], weight_zero_point I32 [words, G], weight_shape I64 [2]."""
    part = lambda key: tensors[f"{name}.{key}"].numpy()
    out, columns = (int(n) for n in part("weight_shape"))
    words, scales = part("weight_packed"), part("weight_scale").astype(np.float64)
    bits = next(b for b in (2, 3, 4, 8) if words.shape[1] == -(-columns * b // 32))
    groups = scales.shape[1]
    group_of = np.arange(columns) // (columns // groups)
    zeros = np.full((out, groups), 2 ** (bits - 1))
    if f"{name}.weight_zero_point" in tensors:
        zeros = unpack(part("weight_zero_point").T, bits, out).T
    return affine(scales[:, group_of], zeros, unpack(words, bits, columns), group_of)


def decode_half_zeros(tensors, name):
    """engine/io/quantized.h: scale (code - zero), zero = (stored + 2^(bits-1)) / 2."""
    part = lambda key: tensors[f"{name}.weight{key}"].numpy()
    bits, group_size = (int(n) for n in part("_affine_grid"))
    scales = part("_scale").astype(np.float64)
    out, groups = scales.shape
    columns = groups * group_size
    stored = unpack(part("_half_zeros").reshape(1, -1), bits, out * groups).reshape(out, groups)
    group_of = np.arange(columns) // group_size
    return affine(scales[:, group_of], (stored + 2 ** (bits - 1)) / 2, unpack(part(""), bits, columns), group_of)


def decode_sparse_outliers(tensors, name):
    """engine/io/quantized.h: value = outlier, or scale (code - zero) with both statistics low + step * code in float32."""
    part = lambda key: tensors[f"{name}.weight{key}"].numpy()
    bits, stat_bits, group_size = (int(n) for n in part("_grid"))
    statistics, rows = part("_statistics").astype(np.float32), part("_outlier_rows").astype(np.int64)
    out, groups = len(part("")), statistics.shape[1]
    columns = groups * group_size
    codes = unpack(part(""), bits, columns).astype(np.float32)
    stream = lambda key: unpack(part(key).reshape(1, -1), stat_bits, out * groups).reshape(out, groups).astype(np.float32)
    low_scale, step_scale, low_zero, step_zero = np.moveaxis(statistics[np.arange(out) // 16], 2, 0)
    scale, zero = low_scale + step_scale * stream("_scale_codes"), low_zero + step_zero * stream("_zero_codes")
    weight = np.repeat(scale, group_size, axis=1) * (codes - np.repeat(zero, group_size, axis=1))
    row_of = np.repeat(np.arange(out), np.diff(rows))
    weight[row_of, part("_outlier_columns").astype(np.int64)] = part("_outliers").astype(np.float32)
    return weight


def decode_residual_binary(tensors, name):
    """engine/io/quantized.h: two bits a weight pick one of four values of its row and block."""
    part = lambda key: tensors[f"{name}.weight{key}"].numpy()
    block_size, coefficients = int(part("_block_size")[0]), part("_coefficients").astype(np.float32)
    columns = part("").shape[1] * 16  # whole words only: in_features must divide by 32
    salient = unpack(part("_salient").reshape(1, -1), 1, columns)[0].astype(bool)
    codes = unpack(part(""), 2, columns)
    mean, scale1, scale2, mean0, scale0, mean1, scale1_group = np.moveaxis(
        np.repeat(coefficients, block_size, axis=1)[:, :columns], 2, 0)
    first, second = np.where(codes & 1, 1, -1).astype(np.float32), np.where(codes & 2, 1, -1).astype(np.float32)
    double = mean + first * scale1 + second * scale2
    single = np.where(codes & 2, mean1 + first * scale1_group, mean0 + first * scale0)
    return np.where(salient, double, single)


def decode_all(folder):
    """(state dict with plain weights, {module: [out]}, {module: [positions, out]}) of a folder, quantized or not."""
    tensors = read_tensors(folder)
    config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    state, channel, position = {}, {}, {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part == "qweight":
            is_v1 = config.get("checkpoint_format", "gptq") == "gptq"
            state[name + ".weight"] = torch.from_numpy(decode_gptq(tensors, name, is_v1))
        elif part == "weight_packed":
            state[name + ".weight"] = torch.from_numpy(decode_pack_quantized(tensors, name))
        elif part == "weight" and name + ".weight_half_zeros" in tensors:
            state[key] = torch.from_numpy(decode_half_zeros(tensors, name))
        elif part == "weight" and name + ".weight_grid" in tensors:
            state[key] = torch.from_numpy(decode_sparse_outliers(tensors, name))
        elif part == "weight" and name + ".weight_block_size" in tensors:
            state[key] = torch.from_numpy(decode_residual_binary(tensors, name))
        elif part == "compensation":
            channel[name] = tensor.float()
        elif part == "position_compensation":
            position[name] = tensor.float()
        elif part in ("weight", "bias"):
            state[key] = tensor.float()
    return state, channel, position


def add_at_positions(table):
    def hook(module, inputs, output):
        flat = output.reshape(-1, output.shape[-1]).clone()  # one window at a time: rows are positions
        count = min(len(flat), len(table))
        flat[:count] += table[:count]
        return flat.reshape(output.shape)

    return hook


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    config = OPTConfig(**config)
    state, channel, position = decode_all(folder)
    model = OPTForCausalLM(config).float().eval()
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    modules = dict(model.named_modules())
    for name, table in position.items():
        modules[name].register_forward_hook(add_at_positions(table))
    for name, vector in channel.items():
        linear = modules["lm_head" if name.endswith("embed_tokens") else name]
        linear.register_forward_hook(lambda module, inputs, output, vector=vector: output + vector)
    return model


def text_of(path, dataset):
    raw = path.read_text(encoding="utf-8")
    if dataset == "text":
        return raw
    rows = [line + "\n" if line.strip() else "" for line in raw.removesuffix("\n").split("\n")]
    return "\n\n".join(rows)


def window_losses(model, ids, windows):
    context = model.config.max_position_embeddings
    losses = []
    with torch.no_grad():
        for start in range(0, min(windows * context, len(ids) - context + 1), context):
            window = ids[start : start + context]
            logits = model(window[None]).logits[0, :-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    return np.array(losses)


def compare(arguments, folder):
    tokenizer = AutoTokenizer.from_pretrained(arguments.float_dir)
    ids = torch.tensor(tokenizer(text_of(arguments.text, arguments.dataset))["input_ids"])
    expected = window_losses(load(folder), ids, arguments.windows)
    command = [arguments.ballast, "perplexity", "-m", folder, "--text", arguments.text, "--dataset", arguments.dataset,
               "--chunks", str(arguments.windows), "--json", "--quiet"]
    got = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    apart = np.abs(np.array(got["window_nll"]) - expected)
    fine = len(expected) == got["windows"] and apart.max() <= arguments.tolerance
    print(f"{folder}: transformers {np.exp(expected.mean()):.5f}, ballast {got['perplexity']:.5f}, windows {len(expected)}, "
          f"largest difference of a window's loss {apart.max():.2e}{'' if fine else '  DIFFERS'}", flush=True)
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ballast")
    parser.add_argument("float_dir", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("quantized_dirs", type=Path, nargs="*")
    parser.add_argument("--dataset", choices=("text", "wikitext2"), default="text")
    parser.add_argument("--windows", type=int, default=8)
    # Losses near 5 nats, each a sum of float32 products over some thousand terms in another order.
    parser.add_argument("--tolerance", type=float, default=5e-6)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the text is longer than a window, on purpose
    sys.exit(not all([compare(arguments, folder) for folder in [arguments.float_dir, *arguments.quantized_dirs]]))


if __name__ == "__main__":
    main()
