#!/usr/bin/env python3
"""Checks the shape of the tree: which folder may include which, and how long a file may be.

usage: check_layout.py [ROOT]     exit 1 and one line per finding
"""
import pathlib
import re
import subprocess
import sys

MAX_LINES = 600

# A folder may include itself and what is listed. The longest matching prefix of a path decides.
MAY_INCLUDE = {
    "kernels": [],
    "engine/core": ["kernels"],
    "engine/nn": ["kernels", "engine/core"],
    "engine/io": ["kernels", "engine/core"],
    "engine/runtime": ["kernels", "engine/core", "engine/nn", "engine/io"],
    "engine/evaluation": ["kernels", "engine/core", "engine/nn", "engine/io", "engine/runtime"],
    "engine/server": ["kernels", "engine/core", "engine/nn", "engine/io", "engine/runtime", "engine/evaluation"],
    "models": ["kernels", "engine"],
    "quantize": ["kernels", "engine"],
    "tools": ["kernels", "engine", "models", "quantize"],
    "tests": ["kernels", "engine", "models", "quantize", "tools"],
}
# These build with the standard library and nlohmann/json alone, so that a bare machine with a GPU can check them.
BARE = ["kernels", "engine/core", "engine/nn", "engine/runtime", "models"]
GENERATED = {"tools/commit.h", "quantize/page_parts.h", "engine/server/page_parts.h"}  # written by the build
BARE_FORBIDDEN = re.compile(r'#include <(fmt|spdlog|CLI|boost|sentencepiece|pcre2|gtest|dnnl)')
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.M)


def folder_of(path):
    matches = [folder for folder in MAY_INCLUDE if path == folder or path.startswith(folder + "/")]
    return max(matches, key=len) if matches else None


def findings(root):
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root,
                            capture_output=True, text=True, check=True).stdout.split("\n")
    for name in sorted(listed):
        path = root / name
        if not name.endswith((".h", ".cpp", ".cu", ".cuh", ".inl", ".py")) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > MAX_LINES:
            yield f"{name}: {lines} lines, at most {MAX_LINES}"
        folder = folder_of(name)
        if name.endswith(".py") or folder is None:
            continue
        allowed = [folder] + MAY_INCLUDE[folder]
        for included in INCLUDE.findall(text):
            if not any(included == other or included.startswith(other + "/") for other in allowed):
                yield f"{name}: includes {included}; {folder} may include only {', '.join(allowed)}"
            elif included not in GENERATED and not (root / included).is_file():
                yield f"{name}: includes {included}, which does not exist"
        if folder in BARE and (match := BARE_FORBIDDEN.search(text)):
            yield f"{name}: {match.group(0)}>: {folder} must build with the standard library and nlohmann/json alone"
        if folder != "kernels" and re.search(r'#include <cuda|__CUDACC__|BALLAST_CUDA', text):
            yield f"{name}: CUDA may appear in kernels only"
    for folder in MAY_INCLUDE:
        if (root / folder).is_dir() and not (root / folder / "README.md").is_file():
            yield f"{folder}: has no README.md"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
    found = list(findings(root))
    for line in found:
        print(line)
    print(f"layout: {len(found)} finding(s)")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
