#!/usr/bin/env python3
"""Converts a Hugging Face style checkpoint from PyTorch's pickle (pytorch_model.bin, also in shards) to safetensors.

usage: convert_checkpoint.py IN_DIR OUT_DIR

OUT_DIR must not exist yet or be empty; it appears complete or not at all. Values are copied bit for bit. Needs torch
and safetensors. Only tensors are read from the pickle (weights_only): a file that holds anything else is refused, because
loading it could run code.
"""

import argparse
import json
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
except ImportError as missing:
    sys.exit(f"convert_checkpoint: needs the Python package {missing.name}: pip install torch safetensors numpy")

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
OUTPUT, OUTPUT_INDEX = "model.safetensors", "model.safetensors.index.json"
COPIED = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "README.md", "LICENSE", "LICENSE.md",
)
HEAD, EMBEDDING_SUFFIX = "lm_head.weight", "embed_tokens.weight"


class Problem(Exception):
    """Something about the input that its owner can put right; shown without a stack trace."""


def read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: no such file") from None
    except ValueError as error:
        raise Problem(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Problem(f"{path}: expected a JSON object")
    return value


def find_shards(folder):
    """The pickle files in order, and for a sharded checkpoint the names that its index promises of each."""
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder")
    if (folder / PICKLE_INDEX).exists():
        weight_map = read_json(folder / PICKLE_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Problem(f"{folder / PICKLE_INDEX}: no weight_map")
        promised = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise Problem(f"{folder / PICKLE_INDEX}: {name}: expected a plain file name, got {file!r}")
            promised.setdefault(file, set()).add(name)
        missing = [file for file in sorted(promised) if not (folder / file).is_file()]
        if missing:
            raise Problem(f"{folder}: the index names files that are not there: {', '.join(missing)}")
        return [(folder / file, promised[file]) for file in sorted(promised)]
    if (folder / PICKLE).is_file():
        return [(folder / PICKLE, None)]
    if any(folder.glob("*.safetensors")):
        raise Problem(f"{folder}: has safetensors files already and no {PICKLE}; nothing to convert")
    raise Problem(f"{folder}: neither {PICKLE} nor {PICKLE_INDEX} found")


def unpickling_reason(error):
    """The line of PyTorch's long message that names what was found, without its advice to load it all the same."""
    for line in str(error).splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.strip().removeprefix("WeightsUnpickler error: ")
    return "no list of tensors could be read"


def load_shard(path, promised):
    """Name -> tensor. Tensors may still share memory with each other or with the mapped file."""
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise Problem(f"{path}: a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    try:
        # Old files are a bare pickle stream, which cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise Problem(f"{path}: damaged, or holds more than tensors, which is not safe to load: "
                      f"{unpickling_reason(error)}") from None
    except Exception as error:  # on damaged bytes the unpickler fails in any way it likes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Problem(f"{path}: not a PyTorch file, or damaged: {reason}") from None
    if not isinstance(state, dict):
        raise Problem(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise Problem(f"{path}: {name}: expected a dense tensor, got {type(value).__name__}")
    if promised is not None and promised - state.keys():
        raise Problem(f"{path}: the index promises {sorted(promised - state.keys())[0]}, which is not in the file")
    return state


def storable(state):
    """Contiguous tensors that own their memory: safetensors has no notion of two names for one buffer."""
    seen, result = set(), {}
    for name, value in state.items():
        buffer = value.untyped_storage()
        whole = value.is_contiguous() and buffer.nbytes() == value.numel() * value.element_size()
        if not whole or buffer.data_ptr() in seen:
            value = value.contiguous().clone()
        seen.add(buffer.data_ptr())
        result[name] = value.detach()
    return result


def write_all(folder, out, config):
    shards = find_shards(folder)
    tied = config.get("tie_word_embeddings", True)
    weight_map, total, dropped = {}, 0, False
    for i, (path, promised) in enumerate(shards):
        print(f"reading {path}", file=sys.stderr)
        state = load_shard(path, promised)
        names = set(state) if promised is None else set().union(*(names for _, names in shards))
        if tied and HEAD in state and any(name.endswith(EMBEDDING_SUFFIX) for name in names):
            del state[HEAD]
            dropped = True
        tensors = storable(state)
        file = OUTPUT if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        for name, value in tensors.items():
            if name in weight_map:
                raise Problem(f"{path}: {name} occurs in two files")
            weight_map[name] = file
            total += value.numel() * value.element_size()
        save_file(tensors, out / file, metadata={"format": "pt"})
    if dropped:
        print(f"{HEAD} left out: the configuration ties it to the token embedding", file=sys.stderr)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (out / OUTPUT_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    return len(weight_map), total


def sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def convert(folder, out):
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Problem(f"{out}: exists and is not an empty folder; not overwritten")
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder")
    config = read_json(folder / "config.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        count, total = write_all(folder, partial, config)
        for file in partial.iterdir():
            file.chmod(0o644)
            sync(file)
        partial.chmod(0o755)
        sync(partial)
        os.replace(partial, out)  # also takes the place of an empty folder
        sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f"{out}: {count} tensors, {total} bytes", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("in_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    args = parser.parse_args()
    try:
        convert(args.in_dir, args.out_dir.absolute())
    except (Problem, OSError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
