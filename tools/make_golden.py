#!/usr/bin/env python3
"""Writes the reference data under tests/golden from independent implementations. The files are committed, so this is
needed only to change them. Needs torch, transformers, safetensors (versions last used: 2.15, 5.23, 0.8).

usage: make_golden.py OUT_DIR [--shared DIR]     e.g. tools/make_golden.py tests/golden --shared DIR
"""

import argparse
import importlib.util
import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Modules beside this file with main(out_dir) or main(out_dir, shared); shared is a folder of larger public data or None.
PARTS = ("golden_opt", "golden_vit", "golden_images", "golden_gradients", "golden_curvature", "golden_activations", "golden_quantizers", "golden_tokenizers")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="folder to write to (tests/golden)")
    parser.add_argument("--shared", type=Path, help="folder of public data; parts that need it are skipped without it")
    args = parser.parse_args()
    if args.shared and not args.shared.is_dir():
        parser.error(f"--shared {args.shared}: no such folder")
    for name in PARTS:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not present, skipped", file=sys.stderr)
            continue
        part = importlib.import_module(name)
        takes_shared = len(inspect.signature(part.main).parameters) > 1
        part.main(args.out_dir, args.shared) if takes_shared else part.main(args.out_dir)


if __name__ == "__main__":
    main()
