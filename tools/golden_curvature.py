"""Curvature from gradients of two tiny OPT models (tests/golden/opt), by PyTorch's autograd in float64 and the formulas of
tests/support/reference_quantizers.py.

Calibration keeps hidden states between blocks in binary16 with a power of two per row (kernels/ops/half_rows.h), so the states before
the observed block are rounded that way here, too. The loss of a sample is the sum over its tokens of -log p(next token). x is extended by a constant 1 that stands for the bias.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from transformers import OPTForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import reference_quantizers as reference  # noqa: E402

SAMPLES, LENGTH = 5, 19
# variant: block, output-adaptive modules, guided modules
CASES = {
    "plain": (1, ["self_attn.q_proj", "self_attn.out_proj", "fc1"], ["self_attn.k_proj", "fc1"]),
    "post_norm_350m": (0, ["self_attn.k_proj", "fc1"], ["self_attn.out_proj"]),
}
GUIDED_GROUPS = 2


def half_rows(hidden):
    """What kernels/ops/half_rows.h makes of [..., width]: the largest magnitude of a row is brought into [2^14, 2^15)."""
    scale = 2.0 ** (torch.floor(torch.log2(hidden.abs().amax(dim=-1, keepdim=True))) - 14)
    return (hidden / scale).to(torch.float16).to(hidden.dtype) * scale


def rounded_input(module, args):
    return (half_rows(args[0].detach()), *args[1:])


def record(model, modules, ids):
    """({name: x [tokens, in + 1]}, {name: gradient by the output [tokens, out]}, sample of each token, mean loss)."""
    outputs, inputs = {}, {}
    for name, module in modules.items():
        def hook(module, args, output, name=name):
            inputs[name] = args[0].detach().reshape(-1, args[0].shape[-1])
            outputs[name] = output
            output.retain_grad()

        module.register_forward_hook(hook)
    x, dy = {name: [] for name in modules}, {name: [] for name in modules}
    losses = []
    for sample in ids:
        logits = model(sample[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, sample[1:], reduction="sum")
        model.zero_grad()
        loss.backward()
        losses.append(loss.item() / (len(sample) - 1))
        for name in modules:
            one = np.ones((len(sample), 1))
            x[name].append(np.concatenate([inputs[name].numpy(), one], axis=1))
            dy[name].append(outputs[name].grad.reshape(len(sample), -1).numpy())
    join = lambda parts: {name: np.concatenate(part) for name, part in parts.items()}
    return join(x), join(dy), np.repeat(np.arange(len(ids)), ids.shape[1]), float(np.mean(losses))


def main(out_dir):
    folder = Path(out_dir) / "quantize"
    facts, tensors = {}, {}
    for variant, (block, adaptive, guided) in CASES.items():
        model = OPTForCausalLM.from_pretrained(Path(out_dir) / "opt" / variant, dtype=torch.float64, attn_implementation="eager")
        model.eval()
        ids = np.random.default_rng(7).integers(4, model.config.vocab_size, size=(SAMPLES, LENGTH))
        named = dict(model.named_modules())
        prefix = f"model.decoder.layers.{block}."
        modules = {prefix + name: named[prefix + name] for name in dict.fromkeys(adaptive + guided)}
        for layer in model.model.decoder.layers[: block + 1]:
            layer.register_forward_pre_hook(rounded_input)
        x, dy, sample, loss = record(model, modules, torch.from_numpy(ids))
        for name in adaptive:
            h = reference.output_adaptive_curvature(x[prefix + name], dy[prefix + name], sample)
            tensors[f"{variant}/{prefix}{name}.output_adaptive"] = h.astype(np.float32)
        for name in guided:
            h = reference.guided_curvature(x[prefix + name], dy[prefix + name], GUIDED_GROUPS)
            tensors[f"{variant}/{prefix}{name}.guided"] = h.astype(np.float32)
        facts[variant] = {"block": block, "samples": SAMPLES, "length": LENGTH, "ids": ids.reshape(-1).tolist(), "loss": loss,
                          "output_adaptive": [prefix + name for name in adaptive], "guided": [prefix + name for name in guided],
                          "guided_groups": GUIDED_GROUPS}
    (folder / "curvature.json").write_text(json.dumps(facts) + "\n")
    (folder / "curvature.safetensors").write_bytes(save(tensors))
