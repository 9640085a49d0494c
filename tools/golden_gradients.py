"""Gradients of the tiny OPT checkpoints that golden_opt.py wrote, from PyTorch's autograd in float64.

gradients.safetensors of a variant holds `loss` [1], the sum of −log p(next token) over one sequence, and its gradient by
the weight of every linear layer of the blocks (and project_out) under the weight's name, all rounded to float32.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import OPTForCausalLM
from transformers.utils import logging

SEQUENCE = 3  # 33 tokens
VARIANTS = ("plain", "post_norm_350m", "gelu")


def gradients(folder):
    net = OPTForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.tensor(json.loads((folder / "golden.json").read_text())["inputs"][SEQUENCE])
    logits = net(ids[None]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
    loss.backward()
    linears = {name: module for name, module in net.named_modules()
               if isinstance(module, torch.nn.Linear) and ("layers." in name or name.endswith("project_out"))}
    return {"loss": loss.detach()[None], **{f"{name}.weight": module.weight.grad for name, module in linears.items()}}


def main(out_dir):
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    for name in VARIANTS:
        folder = Path(out_dir) / "opt" / name
        tensors = {key: value.float().contiguous() for key, value in gradients(folder).items()}
        save_file(tensors, folder / "gradients.safetensors")
        (folder / "gradients.safetensors").chmod(0o644)  # safetensors writes for its owner only
        print(f"{name:18} gradients of {len(tensors) - 1} weights, loss {tensors['loss'].item():.3f}")
