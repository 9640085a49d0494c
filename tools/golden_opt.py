"""Tiny random OPT checkpoints with logits from Hugging Face transformers (float32, CPU, eager attention).

Each variant is a folder: config.json and safetensors as a published checkpoint would have them, golden.json (token ids,
notes) and golden.safetensors (logits_N [tokens, vocab], hidden_N_* [tokens, hidden], all float32). See the README.md
beside the written folders. Sizes are chosen odd on purpose, so that a kernel's tail loops are exercised.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM
from transformers.utils import logging

LENGTHS = (1, 2, 7, 33, 64)
TRACED = 2  # the sequence whose hidden states are stored too
FIRST_ID = 4  # ids below are special tokens
CONFIG_NAME, INDEX_NAME = "config.json", "model.safetensors.index.json"

BASE = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 99,
    "hidden_size": 36,
    "word_embed_proj_dim": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 80,
    "max_position_embeddings": 64,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "attention_dropout": 0.0,
    "dropout": 0.1,
    "layerdrop": 0.0,
    "init_std": 0.02,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "use_cache": True,
}


def sized(hidden, heads, ffn, vocab):
    return {"hidden_size": hidden, "word_embed_proj_dim": hidden, "num_attention_heads": heads, "ffn_dim": ffn,
            "vocab_size": vocab}


# name: (what it shows, changes to BASE's config, storage options). A config key set to None is left out of the file.
VARIANTS = {
    "plain": ("as opt-125m: norm before, ReLU, tied head, names start model.decoder.",
              {"num_hidden_layers": 3}, {"greedy": 20, "seed": 1020, "embedding": 0.25}),
    "prefix_decoder": ("older layout: names start decoder., no lm_head", sized(32, 4, 72, 103), {"strip": "model."}),
    "post_norm_350m": ("as opt-350m: norm after, project_in and project_out, no final norm",
                       {**sized(35, 5, 84, 101), "word_embed_proj_dim": 20, "do_layer_norm_before": False}, {}),
    "untied": ("lm_head.weight of its own", {**sized(36, 3, 80, 128), "tie_word_embeddings": False}, {}),
    "gelu": ("exact (erf) GELU", {**sized(33, 3, 70, 99), "activation_function": "gelu"}, {}),
    "no_bias": ("linears without biases", {**sized(30, 3, 80, 99), "enable_bias": False}, {}),
    "no_affine_norm": ("LayerNorms without weight and bias",
                       {**sized(32, 4, 64, 99), "layer_norm_elementwise_affine": False}, {}),
    "galactica": ("as galactica: GELU, no biases, plain LayerNorms, start token 0, keys that OPT does not know",
                  {**sized(36, 2, 76, 107), "activation_function": "gelu", "enable_bias": False,
                   "layer_norm_elementwise_affine": False, "bos_token_id": 0, "learned_embeddings": True,
                   "scale_embeddings": False}, {}),
    "remove_final_norm": ("norm before, no final norm", {**sized(32, 2, 66, 99), "_remove_final_layer_norm": True},
                          {"embedding": 0.15}),
    "f16": ("stored as float16", {**sized(30, 3, 70, 99), "torch_dtype": "float16"}, {"dtype": torch.float16}),
    "bf16": ("stored as bfloat16; config says dtype instead of torch_dtype",
             {"torch_dtype": None, "dtype": "bfloat16"}, {"dtype": torch.bfloat16}),
    "sharded": ("index and three shards", sized(36, 2, 76, 113), {"shards": 3}),
    "new_dtype_key": ("config says dtype instead of torch_dtype, word_embed_proj_dim left out",
                      {**sized(28, 2, 50, 99), "torch_dtype": None, "dtype": "float32", "word_embed_proj_dim": None},
                      {}),
}


def randomize(net, generator, dtype, embedding):
    """Fills every parameter so that no term of the forward pass is trivial and logits are of order 1 to 3."""
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            values = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            values = 0.3 * noise
        elif "embed" in name or "lm_head" in name:
            values = embedding * noise
        else:  # a linear: outputs about as large as its inputs
            values = 1.3 * noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(values.to(dtype).float())


def inputs_for(vocab, bos, generator):
    """One sequence per length, each led by the start token; the pad id occurs as an ordinary token."""
    sequences = []
    for length in LENGTHS:
        ids = torch.randint(FIRST_ID, vocab, (length,), generator=generator)
        ids[0] = bos
        if length > 8:
            ids[5] = 1
        sequences.append(ids)
    return sequences


def trace(net, ids):
    """Logits of one sequence and the residual stream before the first and after each block."""
    hidden = {}
    hooks = [net.model.decoder.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: hidden.update(embed=kwargs.get("hidden_states", *args)), with_kwargs=True)]
    for i, layer in enumerate(net.model.decoder.layers):
        hooks.append(layer.register_forward_hook(
            lambda _, __, out, i=i: hidden.update({f"block_{i}": out[0] if isinstance(out, tuple) else out})))
    logits = net(ids[None]).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, {k: v[0].clone() for k, v in hidden.items()}


def greedy(net, prompt, count):
    """Ids chosen one at a time by full forward passes, and the smallest lead of a choice over the runner-up."""
    ids, lead = list(prompt), float("inf")
    for _ in range(count):
        best = net(torch.tensor([ids])).logits[0, -1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return {"prompt": list(prompt), "ids": ids[len(prompt):], "smallest_lead": round(lead, 5)}


def write_weights(folder, tensors, shards):
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        part = {name: tensors[name] for name in names[i::shards]}  # interleaved: each layer is spread over all shards
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def check_reload(folder, sequences, logits):
    """The written folder, opened the ordinary way, must give the stored logits."""
    net, info = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                               output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{folder}: does not load cleanly: {info}")
    for ids, expected in zip(sequences, logits):
        torch.testing.assert_close(net.eval()(ids[None]).logits[0], expected, rtol=0, atol=1e-5)


def write_variant(folder, seed, about, changes, storage):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    config = {k: v for k, v in {**BASE, **changes}.items() if v is not None}
    dtype = storage.get("dtype", torch.float32)
    net = OPTForCausalLM._from_config(OPTConfig(**{k: v for k, v in config.items() if "dtype" not in k}),
                                      attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    randomize(net, generator, dtype, storage.get("embedding", 0.35))
    tied = config.get("tie_word_embeddings", True)
    tensors = {name.removeprefix(storage.get("strip", "")): value.to(dtype).contiguous()
               for name, value in net.state_dict().items() if not (tied and name == "lm_head.weight")}
    write_weights(folder, tensors, storage.get("shards", 1))
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")

    sequences = inputs_for(config["vocab_size"], config["bos_token_id"], generator)
    results = [trace(net, ids) for ids in sequences]
    golden = {f"logits_{i}": logits.contiguous() for i, (logits, _) in enumerate(results)}
    golden.update({f"hidden_{TRACED}_{k}": v.contiguous() for k, v in results[TRACED][1].items()})
    save_file(golden, folder / "golden.safetensors")
    note = {"about": about, "seed": seed, "inputs": [ids.tolist() for ids in sequences]}
    if "greedy" in storage:
        note["greedy"] = greedy(net, sequences[2].tolist(), storage["greedy"])
    (folder / "golden.json").write_text(json.dumps(note) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner only
    check_reload(folder, sequences, [logits for logits, _ in results])
    spread = torch.cat([logits for logits, _ in results]).std().item()
    print(f"{folder.name:18} logits std {spread:.2f}  {note.get('greedy', '')}")


@torch.no_grad()
def main(out_dir):
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    for i, (name, (about, changes, storage)) in enumerate(VARIANTS.items()):
        write_variant(Path(out_dir) / "opt" / name, storage.get("seed", 1000 + i), about, changes, storage)
