"""Tiny random ViT and DeiT classifiers with logits from Hugging Face transformers (float32, CPU, eager attention).

Each variant is a folder: config.json and model.safetensors as a published checkpoint would have them, and
golden.safetensors: pixels [images, channels, height, width], logits [images, classes], and the residual stream of all
images before the first and after each block, hidden_N [images, tokens, hidden]. Sizes are odd on purpose. The variants
named timm_ hold the same weights under timm's names, with q, k and v fused.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, ViTConfig,
                          ViTForImageClassification)
from transformers.utils import logging

BASE = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 70, "image_size": 20,
        "patch_size": 4, "num_labels": 7, "layer_norm_eps": 1e-6}
TIMM = {"embeddings.cls_token": "cls_token", "embeddings.distillation_token": "dist_token",
        "embeddings.position_embeddings": "pos_embed", "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer.": "blocks.", "attention.output.dense": "attn.proj", "layernorm_before": "norm1",
        "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "layernorm": "norm",
        "distillation_classifier": "head_dist", "cls_classifier": "head", "classifier": "head"}

# name: (config class, model class, changes to BASE, options)
VARIANTS = {
    "vit": (ViTConfig, ViTForImageClassification, {}, {}),
    "vit_eps_wide": (ViTConfig, ViTForImageClassification,
                     {"layer_norm_eps": 1e-2, "image_size": [24, 15], "patch_size": [8, 5], "hidden_size": 32,
                      "num_attention_heads": 2}, {}),
    "vit_no_qkv_bias": (ViTConfig, ViTForImageClassification, {"qkv_bias": False, "hidden_act": "relu"}, {}),
    "vit_f16": (ViTConfig, ViTForImageClassification, {"hidden_size": 32, "num_attention_heads": 4},
                {"dtype": torch.float16}),
    "deit": (DeiTConfig, DeiTForImageClassification, {"patch_size": 5}, {}),
    "deit_teacher": (DeiTConfig, DeiTForImageClassificationWithTeacher, {"num_hidden_layers": 3}, {}),
    "timm_vit": (ViTConfig, ViTForImageClassification, {"hidden_size": 64, "num_attention_heads": 1}, {"timm": "vit_mini_patch4_20"}),
    "timm_deit_teacher": (DeiTConfig, DeiTForImageClassificationWithTeacher, {}, {"timm": "deit_mini_distilled_patch4_20"}),
    "timm_names": (ViTConfig, ViTForImageClassification, {}, {"timm": None}),
}


def randomize(net, generator, dtype):
    """Fills every parameter so that no term of the forward pass is trivial and logits are of order 1."""
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            values = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias") or "token" in name or "position" in name:
            values = 0.3 * noise
        else:  # a linear: outputs about as large as its inputs
            values = 1.3 * noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(values.to(dtype).float())


def trace(net, pixels):
    hidden = []
    layers = next(m for n, m in net.named_modules() if n.endswith("layers") or n.endswith("encoder.layer"))
    hooks = [layers[0].register_forward_pre_hook(lambda _, args, kwargs: hidden.append((args or (kwargs["hidden_states"],))[0]),
                                                 with_kwargs=True)]
    hooks += [layer.register_forward_hook(lambda _, __, out: hidden.append(out[0] if isinstance(out, tuple) else out))
              for layer in layers]
    logits = net(pixel_values=pixels).logits
    for hook in hooks:
        hook.remove()
    return logits, hidden


def to_timm(tensors):
    named = {}
    for name, value in tensors.items():
        name = name.removeprefix("vit.").removeprefix("deit.")
        for old, new in TIMM.items():
            name = name.replace(old, new)
        named[name] = value
    for suffix in ("weight", "bias"):
        for block in sorted({n.split(".")[1] for n in named if n.startswith("blocks.")}):
            parts = [f"blocks.{block}.attention.attention.{p}.{suffix}" for p in ("query", "key", "value")]
            named[f"blocks.{block}.attn.qkv.{suffix}"] = torch.cat([named.pop(p) for p in parts])
    return named


def write_variant(folder, seed, config_class, model_class, changes, options):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    dtype = options.get("dtype", torch.float32)
    config = config_class(**{**BASE, **changes})
    net = model_class._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    randomize(net, generator, dtype)
    net.to(dtype).save_pretrained(folder)
    height, width = (config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2)
    pixels = torch.randn((3, 3, height, width), generator=generator)
    logits, hidden = trace(net.float(), pixels)
    golden = {"pixels": pixels, "logits": logits, **{f"hidden_{i}": h.clone() for i, h in enumerate(hidden)}}
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    if "timm" in options:
        save_file({k: v.contiguous() for k, v in to_timm(load_file(folder / "model.safetensors")).items()},
                  folder / "model.safetensors", metadata={"format": "pt"})
        if options["timm"]:
            timm = {"architecture": options["timm"], "num_classes": config.num_labels, "num_features": config.hidden_size}
            if config.hidden_size % 64:
                timm["model_args"] = {"num_heads": config.num_attention_heads}
            (folder / "config.json").write_text(json.dumps(timm, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner only
    print(f"{folder.name:18} logits std {logits.std().item():.2f}")


@torch.no_grad()
def main(out_dir):
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    for i, (name, variant) in enumerate(VARIANTS.items()):
        write_variant(Path(out_dir) / "vit" / name, 2000 + i, *variant)


if __name__ == "__main__":
    import sys
    main(sys.argv[1])
